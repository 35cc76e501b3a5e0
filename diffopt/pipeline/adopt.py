"""What a pipeline that somebody else loaded says of itself: its model, and the precision of its weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffopt.errors import Refusal, UsageError
from diffopt.machine.content import sha256_of_folder
from diffopt.machine.temporary import temporary_folder
from diffopt.models import hub
from diffopt.models.facts import DENOISER_NAMES, read_model_facts
from diffopt.models.index import read_model_index, read_model_json
from diffopt.models.resolve import complete_model, model_folder, packaged_architecture
from diffopt.models.weights import Weights
from diffopt.schema.words import PRECISION_OF_DTYPE
from diffopt.steps.components import parts

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn

    from diffopt.schema.model import Model

PLACES = ("id", "revision", "variant", "path", "architecture", "content", "weights")  # keys that say what to load


def facts_of_loaded_pipeline(pipe: DiffusionPipeline, data: dict[str, Any]) -> dict[str, Any]:
    """The composed ``model`` group (of ``model=local``) with its nulls filled in from the pipeline instead of a folder.

    Raises UsageError for what its configs do not tell.
    """
    named = {**data, "name": type(pipe).__name__} if data["name"] == "local" else data
    with temporary_folder("configs") as folder:
        try:
            return complete_model(named, lambda given: _facts_of_pipeline(pipe, given, folder))
        except UsageError as error:
            raise UsageError(f"this {type(pipe).__name__}: {error}".replace(f"{folder}/", "")) from None


def _facts_of_pipeline(pipe: DiffusionPipeline, data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The facts that the same configs would tell if they lay in a folder."""
    written = list(_write_configs(pipe, folder))
    index = read_model_index(folder)
    weights = {name: _weights_of_module(part) for name, part in parts(pipe).items() if name in index.modules}
    return {**read_model_facts(index, weights, data), "content": sha256_of_folder(folder, sorted(written))}


def _write_configs(pipe: Any, folder: Path) -> Iterator[Path]:
    """The configs of the pipeline and of its parts, as ``save_pretrained`` names them, without any weights."""
    configs: dict[str, Any] = {"model_index.json": pipe}
    for name, part in pipe.components.items():
        if hasattr(part, "config_name"):  # of diffusers: models, schedulers, guiders
            configs[f"{name}/{part.config_name}"] = part
        elif hasattr(part, "config") and hasattr(part.config, "to_json_string"):  # models of transformers
            configs[f"{name}/config.json"] = part.config
    for name, config in configs.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            json.dumps({"_class_name": type(pipe).__name__, **plain_config_of_loaded_component(config)}),
            encoding="utf-8",
        )
        yield path


def plain_config_of_loaded_component(config: Any) -> dict[str, Any]:
    """A config of diffusers or transformers as JSON has it, without where it came from and what wrote it."""
    found: dict[str, Any] = json.loads(config.to_json_string())
    return {key: value for key, value in found.items() if not key.startswith("_")}


def _weights_of_module(part: nn.Module) -> Weights:
    counts = _counts(part)
    most = max(counts, key=counts.__getitem__, default="float32")
    return Weights((), sum(counts.values()), most if most in PRECISION_OF_DTYPE else "float32")


def _counts(part: nn.Module) -> Counter[str]:
    """Numbers that a file of the weights would hold, by dtype: parameters, and buffers that are saved with them."""
    named = {name for name, _ in part.named_parameters(remove_duplicate=False)}
    buffers = [tensor for name, tensor in part.state_dict().items() if name not in named]
    counts: Counter[str] = Counter()
    for tensor in (*part.parameters(), *buffers):
        counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return counts


def precision_of_loaded_pipeline(pipe: DiffusionPipeline) -> str:
    """The option of the group ``precision`` that is the pipeline's own: that of most weights of its denoiser.

    Raises Refusal where it has none of those in a dtype that a recipe can have.
    """
    found = parts(pipe)
    for part in (*(found[name] for name in DENOISER_NAMES if name in found), *found.values()):
        counts = {dtype: number for dtype, number in _counts(part).items() if dtype in PRECISION_OF_DTYPE}
        if counts:
            return PRECISION_OF_DTYPE[max(counts, key=counts.__getitem__)]
    raise Refusal(
        f"this {type(pipe).__name__} has no weights in {', '.join(PRECISION_OF_DTYPE)}, so no precision is its own"
    )


def check_loaded_pipeline_is_model(pipe: DiffusionPipeline, model: Model) -> None:
    """Raise Refusal where the pipeline is not one of the chosen ``model``: another class, or another denoiser."""
    mine, chosen = type(pipe).__name__, f"model={model.name} is chosen, and this pipeline is another"
    remedy = "leave model out, and the pipeline's own facts are taken"
    classes = [getattr(model.pipelines, task) for task in model.pipelines.tasks]
    if mine not in classes:
        raise Refusal(f"{chosen}: it is a {mine}, the model's are {', '.join(classes)}; {remedy}")
    denoiser = pipe.components.get(model.denoiser)
    found = pipe.config[model.denoiser][1] if denoiser is not None else "nothing"
    if found != model.denoiser_class:
        raise Refusal(f"{chosen}: its {model.denoiser} is {found}, the model's {model.denoiser_class}; {remedy}")
    config = plain_config_of_loaded_component(denoiser)
    for key, value in _denoiser_config(model).items():
        if key in config and config[key] != value:
            raise Refusal(f"{chosen}: its {model.denoiser} has {key}={config[key]}, the model's {value}; {remedy}")


def _denoiser_config(model: Model) -> Mapping[str, Any]:
    """The saved config of the model's denoiser, as far as a file says it."""
    folder = model_folder(model)
    if folder is None and model.architecture is not None:
        folder = packaged_architecture(model.architecture)
    if folder is None:
        folder = hub.open_hub_repository(str(model.id), model.revision).folder
    config = read_model_json(folder / model.denoiser / "config.json")
    return {key: value for key, value in config.items() if not key.startswith("_")}
