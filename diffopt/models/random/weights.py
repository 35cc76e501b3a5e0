"""Pipelines with random weights, built at full size from config files alone.

Speed and memory do not depend on what weights say, so a pipeline can be measured without downloading it. Layers keep
the variance of their input (normal weights, standard deviation 1/sqrt(fan-in)), which keeps activations finite in
float16 and leaves no layer at zero, as published initialisations do with the last one of a branch.
"""

from __future__ import annotations

import importlib
import inspect
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffopt.errors import UsageError
from diffopt.models.index import IndexEntry, read_model_index, read_model_json
from diffopt.models.random.tokenizers import tokenizer_of_model_folder

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn


def random_pipeline(
    folder: Path,
    pipeline_class: Any,
    *,
    device: str,
    dtype: Mapping[str, torch.dtype],
    seed: int = 0,
    without: Collection[str] = (),
) -> DiffusionPipeline:
    """The pipeline that ``folder`` (Hugging Face layout, weights not needed) describes, with random weights.

    ``pipeline_class`` is a class of diffusers; it is given those of the folder's components that it takes, and ``None``
    for the ones in ``without`` and for those that it can do without. ``dtype`` maps component names, and ``default``,
    to what they are stored in; what a model's class keeps in float32 stays so, as with weights from a file. Values are
    drawn in float32 and then rounded, so the same seed gives the same weights in every dtype; CPU and GPU draw
    different ones. Raises UsageError where the folder lacks a component that the class needs.
    """

    def make(name: str, part: IndexEntry) -> Any:
        own_dtype = dtype.get(name, dtype["default"])
        return _made_component(
            folder / name, part, device=device, dtype=own_dtype, seed=seed + zlib.crc32(name.encode())
        )

    return _pipeline_of_parts(folder, pipeline_class, make, without)


def weightless_pipeline(
    folder: Path, pipeline_class: Any, *, without: Collection[str] = (), made_tokenizers: bool, controlnet: Any = None
) -> DiffusionPipeline:
    """The pipeline that ``folder`` describes with its networks' parameters on the meta device, all else as loaded.

    Args:
        without: as for :func:`random_pipeline`.
        made_tokenizers: whether tokenizers without a vocabulary are made up, as for random weights.
        controlnet: one that does not lie in the folder.
    """

    def make(name: str, part: IndexEntry) -> Any:
        if part.kind == "tokenizer" and made_tokenizers:
            return tokenizer_of_model_folder(folder / name, part.class_name)
        return weightless_component(folder / name, part)

    given = {} if controlnet is None else {"controlnet": controlnet}
    return _pipeline_of_parts(folder, pipeline_class, make, without, given)


def weightless_component(folder: Path, part: IndexEntry) -> Any:
    """One part of a pipeline; of a network the parameters have shapes and no values."""
    if _has_weights(part):
        return _empty_module(part, folder, buffers="real").eval().requires_grad_(False)
    return _class_of_part(part).from_pretrained(folder, local_files_only=True)


def _pipeline_of_parts(
    folder: Path,
    pipeline_class: Any,
    make: Callable[[str, IndexEntry], Any],
    without: Collection[str],
    given: Mapping[str, Any] | None = None,
) -> DiffusionPipeline:
    """The pipeline of what ``make`` gives for each entry of model_index.json that the class takes."""
    index, said = read_model_index(folder), read_model_json(folder / "model_index.json")
    optional = {*pipeline_class._optional_components, *without, *said}
    arguments: dict[str, Any] = {}
    for name, default in _init_parameters(pipeline_class):
        if given is not None and name in given:
            arguments[name] = given[name]
        elif name in index.components and name not in without:
            arguments[name] = make(name, index.components[name])
        elif name == "requires_safety_checker":
            arguments[name] = "safety_checker" in index.components
        elif name in said and not isinstance(said[name], list):
            arguments[name] = said[name]
        elif name in optional or default is None:
            arguments[name] = None
        elif default is inspect.Parameter.empty:
            raise UsageError(f"{folder}/model_index.json lacks {name}, which {pipeline_class.__name__} is made of")
    pipe: DiffusionPipeline = pipeline_class(**arguments)
    return pipe


def meta_modules(folder: Path, without: Collection[str] = ()) -> dict[str, nn.Module]:
    """The components of ``folder`` that have weights, by name, on the meta device: they have shapes and no values."""
    parts = {name: part for name, part in read_model_index(folder).components.items() if name not in without}
    weighted = {name: part for name, part in parts.items() if _has_weights(part)}
    return {name: _empty_module(part, folder / name, buffers="meta").to("meta") for name, part in weighted.items()}


def _init_parameters(pipeline_class: Any) -> list[tuple[str, Any]]:
    """Name and default of what the class is made of."""
    parameters = list(inspect.signature(pipeline_class.__init__).parameters.values())[1:]  # without self
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [(parameter.name, parameter.default) for parameter in parameters if parameter.kind not in variadic]


def _made_component(folder: Path, part: IndexEntry, *, device: str, dtype: torch.dtype, seed: int) -> Any:
    """One entry of model_index.json: a tokenizer, a scheduler, a processor of pictures, or a module with weights."""
    if part.kind == "tokenizer":
        return tokenizer_of_model_folder(folder, part.class_name)
    if _has_weights(part):
        module = _empty_module(part, folder, buffers="real")
        fill_with_random_weights(module, device=device, dtype=dtype, seed=seed)
        return module.eval().requires_grad_(False)
    return _class_of_part(part).from_pretrained(folder, local_files_only=True)


def _class_of_part(part: IndexEntry) -> Any:
    return getattr(importlib.import_module(part.module), part.class_name)


def _has_weights(part: IndexEntry) -> bool:
    from torch import nn

    return part.kind != "tokenizer" and issubclass(_class_of_part(part), nn.Module)


def _empty_module(part: IndexEntry, folder: Path, *, buffers: Literal["real", "meta"]) -> nn.Module:
    """The module with parameters on the meta device. Real buffers are computed here, as position ids are not drawn."""
    import diffusers
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights  # of torch's modules too

    cls = _class_of_part(part)
    if issubclass(cls, diffusers.ModelMixin):
        config = cls.load_config(folder, local_files_only=True)
        with no_init_weights(), init_empty_weights(include_buffers=buffers == "meta"):
            module = cls.from_config(config)
    else:
        config = cls.config_class.from_pretrained(folder, local_files_only=True)
        for one in filter(None, [config, *(getattr(config, key) for key in config.sub_configs)]):
            one.dtype = None  # else parts that have a config of their own would be made in what it says
        with no_init_weights(), init_empty_weights(include_buffers=buffers == "meta"):
            module = cls(config)
        module.tie_weights()  # init_empty_weights gives each name a parameter of its own
    empty: nn.Module = module
    return empty


def fill_with_random_weights(module: nn.Module, *, device: str, dtype: torch.dtype, seed: int) -> None:
    """Give every parameter of ``module`` a value on ``device`` in ``dtype``, and move its buffers there.

    Only one parameter at a time exists in float32, and tied ones stay one. Of the buffers, those of a checkpoint are
    stored like weights; the others keep their type, as tables of positions need their precision.
    """
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    wide, gains = _kept_in_float32(module, dtype), _gains(module)
    drawn: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for path, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter not in drawn:
                value = torch.empty(parameter.shape, dtype=torch.float32, device=device)
                _draw(value, owner, name, generator)
                value *= gains.get(owner, 1.0)
                kept = wide.intersection([*path.split("."), name])
                drawn[parameter] = torch.nn.Parameter(value.to(torch.float32 if kept else dtype), requires_grad=False)
            owner.register_parameter(name, drawn[parameter])
        for name, buffer in owner.named_buffers(recurse=False):
            stored = buffer.is_floating_point() and name not in owner._non_persistent_buffers_set
            owner._buffers[name] = buffer.to(device, dtype if stored else buffer.dtype)


def _draw(value: torch.Tensor, owner: nn.Module, name: str, generator: torch.Generator) -> None:
    import torch

    kind = type(owner).__name__
    if name.endswith("bias") or name == "beta":
        value.zero_()
    elif kind.startswith("Gemma") and kind.endswith("RMSNorm"):
        value.zero_()  # it multiplies by 1 + weight
    elif value.ndim < 2 or name == "gamma":
        value.fill_(1.0)  # scales of norms
    elif isinstance(owner, torch.nn.Embedding):
        value.normal_(generator=generator)  # a look-up: one input each
    elif name == "weight":
        value.normal_(std=value[0].numel() ** -0.5, generator=generator)
    else:  # tables of a block, such as scale_shift_table; drawn as diffusers does
        value.normal_(std=value.shape[-1] ** -0.5, generator=generator)


def _gains(module: nn.Module) -> dict[nn.Module, float]:
    """Layers whose weights must be larger or smaller than others for their effect to be a usual one."""
    from torch.nn import Conv2d

    gains: dict[nn.Module, float] = {}
    for part in module.modules():
        kind = type(part).__name__
        if kind in ("T5Attention", "UMT5Attention"):  # does not divide by the root of the head size
            attention: Any = part
            gains[attention.q] = attention.key_value_proj_dim**-0.5
        elif kind.startswith("Gemma") and kind.endswith("ScaledWordEmbedding"):  # multiplies by the root of its width
            embedding: Any = part
            gains[part] = embedding.embedding_dim**-0.5
        elif kind == "ControlNetConditioningEmbedding":  # eight layers, and SiLU halves small values after each
            gains |= {layer: 2.0 for layer in part.modules() if isinstance(layer, Conv2d)}
    return gains


def _kept_in_float32(module: nn.Module, dtype: torch.dtype) -> frozenset[str]:
    """Names of layers and parameters that from_pretrained would keep in float32, such as ``scale_shift_table``."""
    import diffusers
    import torch

    keys = ["_keep_in_fp32_modules_strict"]
    if isinstance(module, diffusers.ModelMixin) or dtype == torch.float16:  # transformers minds float16 alone
        keys.append("_keep_in_fp32_modules")
    lists = [getattr(module, key, None) or () for key in keys]
    return frozenset(name for names in lists for name in ([names] if isinstance(names, str) else names))
