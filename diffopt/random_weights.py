"""Pipelines with random weights, built at full size from config files alone.

Speed and memory do not depend on what weights say, so a pipeline can be measured without downloading it. Layers keep
the variance of their input (normal weights, standard deviation 1/sqrt(fan-in)), which keeps activations finite in
float16 and leaves no layer at zero, as published initialisations do with the last one of a branch.
"""

from __future__ import annotations

import importlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffopt.model_index import LEFT_OUT

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn


def random_pipeline(
    folder: Path, pipeline_class: Any, *, device: str, dtype: Mapping[str, torch.dtype], seed: int = 0
) -> DiffusionPipeline:
    """The pipeline that ``folder`` (Hugging Face layout, weights not needed) describes, with random weights.

    ``pipeline_class`` is a class of diffusers that takes the components listed in the folder's model_index.json.
    ``dtype`` maps component names, and ``default``, to what they are stored in. Values are drawn in float32 and then
    rounded, so the same seed gives the same weights in every dtype; CPU and GPU draw different ones.
    """
    index = json.loads((folder / "model_index.json").read_text())
    arguments: dict[str, Any] = {}
    for name, value in index.items():
        if name.startswith("_") or name in LEFT_OUT:
            continue
        if isinstance(value, list):
            library, class_name = value
            own_dtype, own_seed = dtype.get(name, dtype["default"]), seed + zlib.crc32(name.encode())
            arguments[name] = class_name and _component(folder / name, library, class_name, device, own_dtype, own_seed)
        else:
            arguments[name] = value
    arguments |= dict.fromkeys(LEFT_OUT & index.keys())
    pipe: DiffusionPipeline = pipeline_class(**arguments)
    return pipe


def _component(folder: Path, library: str, class_name: str, device: str, dtype: torch.dtype, seed: int) -> Any:
    """One entry of model_index.json: a tokenizer, a scheduler or a module with weights."""
    if "Tokenizer" in class_name:
        return _tokenizer(folder, class_name)
    cls = getattr(importlib.import_module(library), class_name)
    if "Scheduler" in class_name:
        return cls.from_pretrained(folder)
    module = _empty_module(cls, folder)
    fill(module, device=device, dtype=dtype, seed=seed)
    return module.eval().requires_grad_(False)


def _tokenizer(folder: Path, class_name: str) -> Any:
    """The tokenizer saved in ``folder``, else one made to fit the text encoder beside it (``_2`` to ``_2``)."""
    import transformers

    from diffopt.clip_tokenizer import build_tokenizer

    if (folder / "tokenizer.json").exists() or (folder / "vocab.json").exists():
        return getattr(transformers, class_name).from_pretrained(folder, local_files_only=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    encoder = folder.parent / folder.name.replace("tokenizer", "text_encoder") / "config.json"
    vocab_size = json.loads(encoder.read_text())["vocab_size"]
    return build_tokenizer(vocab_size, pad_token=config["pad_token"], max_length=config["model_max_length"])


def _empty_module(cls: Any, folder: Path) -> nn.Module:
    """The module with parameters on the meta device and real buffers, as position ids are computed and not drawn."""
    import diffusers
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        if issubclass(cls, diffusers.ModelMixin):
            module: nn.Module = cls.from_config(cls.load_config(folder))
        else:
            module = cls(cls.config_class.from_pretrained(folder, local_files_only=True))
    return module


def fill(module: nn.Module, *, device: str, dtype: torch.dtype, seed: int) -> None:
    """Give every parameter of ``module`` a value on ``device`` in ``dtype``, and move its buffers there.

    Only one parameter at a time exists in float32. Buffers keep their type: tables of positions need their precision.
    """
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            value = torch.empty(parameter.shape, dtype=torch.float32, device=device)
            _draw(value, owner, name, generator)
            setattr(owner, name, torch.nn.Parameter(value.to(dtype), requires_grad=False))
        for name, buffer in owner.named_buffers(recurse=False):
            setattr(owner, name, buffer.to(device))


def _draw(value: torch.Tensor, owner: nn.Module, name: str, generator: torch.Generator) -> None:
    import torch

    if name.endswith("bias"):
        value.zero_()
    elif value.ndim < 2:
        value.fill_(1.0)  # scales of norms
    elif isinstance(owner, torch.nn.Embedding):
        value.normal_(generator=generator)  # a look-up: one input each
    else:
        value.normal_(std=value[0].numel() ** -0.5, generator=generator)
