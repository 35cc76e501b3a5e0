"""The layers of a LoRA in a pipeline: loaded, fused, and looked at. Imports torch and peft.

diffusers loads what matches and says nothing of the rest: a file whose names fit no part leaves a pipeline as it was.
So the layers are counted against the file.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.utils import logging as of_transformers

from diffopt.components import parts
from diffopt.errors import NoEffect, Refusal
from diffopt.hub import one_line
from diffopt.lora_files import checked
from diffopt.step import Effect
from diffopt.steps.linears import replaced
from diffopt.steps.offload import layer_hooks

if TYPE_CHECKING:
    from diffopt.steps.lora import Source

Layers = dict[str, dict[str, Any]]  # component: path of the layer: the layer

_LAYER = re.compile(r"(\.lora_[AB]|\.lora\.(down|up)|_lora\.(down|up)|\.lora_(down|up)|\.lokr_).*$")
_FUSED, _COUNTS = "_diffopt_fused_lora", "_diffopt_lora_layers"  # attributes of the pipeline
_SAMPLES = 8  # layers whose weights are looked at after fusing, in each component
_ROWS = 64  # outputs of them
# Of a change that was added to weights, the part that they show: rounding in half precision takes some away, and
# quantizing adds noise, which cancels out over thousands of weights.
_LEAST, _MOST = 0.5, 1.5


@dataclass(frozen=True)
class Sample:
    """Some rows of a weight before the LoRA was fused, and what it adds to them; float32, on the host."""

    component: str
    path: str
    before: torch.Tensor
    change: torch.Tensor


def load(pipe: Any, step: Source, *, adapter: str) -> None:
    """Put the layers of the step's file into the pipeline, active, and remember how many there are.

    Raises Refusal where the file is not the recipe's, the pipeline takes none, or a layer fits none of its modules.
    """
    said = f"lora={step.kind}"
    if step.path is None:
        raise Refusal(f"{said}: name the LoRA's file with lora.path=FILE.safetensors")
    if not hasattr(pipe, "load_lora_weights"):
        raise Refusal(f"{said}: {type(pipe).__name__} has no load_lora_weights")
    if any(_adapted(part) for part in parts(pipe).values()):
        raise Refusal(f"{said}: the pipeline has LoRA layers already; unload_lora_weights() takes them out")
    file = checked(step.path, step.content)
    wanted = targets(pipe, file, said)
    with quiet():
        try:
            pipe.load_lora_weights(str(file), adapter_name=adapter, use_safetensors=True, local_files_only=True)
        except (ValueError, RuntimeError, LookupError, TypeError) as error:
            first = min(min(paths) for paths in wanted.values())
            reason = f"nothing is called {first}" if "not found in the base model" in str(error) else _brief(error)
            raise Refusal(f"{said}: {file.name} does not fit this {type(pipe).__name__}: {reason}") from error
    found = layers(pipe, adapter)
    for component, paths in wanted.items():
        if len(found.get(component, {})) < len(paths):
            lacking = sorted(paths - found.get(component, {}).keys())
            raise Refusal(
                f"{said}: {len(found.get(component, {}))} of the {len(paths)} layers in {file.name} fit {component} "
                f"({type(getattr(pipe, component)).__name__}), {lacking[0]} does not"
            )
    for layer in (layer for one in found.values() for layer in one.values()):
        layer.requires_grad_(False)
    setattr(pipe, _COUNTS, {component: len(found[component]) for component in wanted})


def targets(pipe: Any, file: Path, said: str) -> dict[str, set[str]]:
    """The modules that a file changes, by component, in diffusers' names; other tools' formats are converted."""
    with quiet():
        try:
            state = pipe.lora_state_dict(str(file), use_safetensors=True, local_files_only=True)
        except (ValueError, RuntimeError, LookupError, TypeError) as error:
            raise Refusal(
                f"{said}: {file.name} is in no format that {type(pipe).__name__} knows: {_brief(error)}"
            ) from error
    found: dict[str, set[str]] = {}
    for name in state[0] if isinstance(state, tuple) else state:
        component, _, rest = name.partition(".")
        if _LAYER.search(rest):
            found.setdefault(component, set()).add(_LAYER.sub("", rest))
    loadable = [name for name in pipe._lora_loadable_modules if getattr(pipe, name, None) is not None]
    if not found or (unknown := sorted(found.keys() - set(loadable))):
        told = f"its names begin with {', '.join(unknown)}" if found else "no tensor is named as LoRA's are"
        raise Refusal(
            f"{said}: {file.name} does not fit {type(pipe).__name__}, which takes {', '.join(loadable)}: {told}"
        )
    return found


def layers(pipe: DiffusionPipeline, adapter: str) -> Layers:
    """The layers of an adapter, by component and path; components without any are left out."""
    found = {
        name: {path: layer for path, layer in _adapted(part) if _has(layer, adapter)}
        for name, part in parts(pipe).items()
    }
    return {name: one for name, one in found.items() if one}


def fuse(pipe: Any, *, adapter: str, scale: float) -> None:
    """Add the adapter to the weights and take its layers out, and remember some weights for the proof."""
    pipe.set_adapters([adapter], [scale])
    found = layers(pipe, adapter)
    samples = [sample for component, one in found.items() for sample in _samples(component, one, adapter)]
    pipe.fuse_lora(components=[*found], adapter_names=[adapter])
    pipe.unload_lora_weights()
    setattr(pipe, _FUSED, samples)


def proof_of_fusion(pipe: DiffusionPipeline) -> Effect:
    """Compare weights as they are now with those before fusing. Raises NoEffect where the change is not in them."""
    samples: Sequence[Sample] | None = vars(pipe).get(_FUSED)
    if not samples:
        raise NoEffect("lora=fused: no LoRA was fused into this pipeline")
    if any(_adapted(part) for part in parts(pipe).values()):
        raise NoEffect("lora=fused: LoRA layers still stand beside the weights")
    size = _length(sample.change for sample in samples) / _length(sample.before for sample in samples)
    if not size:
        raise NoEffect("lora=fused: the LoRA's matrices are zero and change nothing")
    shown = {component: _shown(pipe, samples, component) for component in {sample.component for sample in samples}}
    for component, part in shown.items():
        if not _LEAST <= part <= _MOST:
            raise NoEffect(
                f"lora=fused: the weights of {component} show {part:.0%} of a change by {size:.2%}; where they are too "
                "coarse for it, as half precision may be, choose lora=live"
            )
    numbers = {**vars(pipe)[_COUNTS], "change": size, "shown": min(shown.values())}
    counts = _told(vars(pipe)[_COUNTS])
    return Effect(f"{counts} changed by {size:.2%}, of which the weights show {numbers['shown']:.0%}", numbers)


def proof(pipe: DiffusionPipeline, kind: str, adapter: str, scale: float) -> Effect:
    """Count the layers that are there and switched on. Raises NoEffect where one of the file's is not."""
    wanted: Mapping[str, int] = vars(pipe).get(_COUNTS, {})
    found = layers(pipe, adapter)
    if not wanted or not found:
        raise NoEffect(f"lora={kind}: the pipeline has no layers of a LoRA")
    for component, count in wanted.items():
        there = found.get(component, {})
        dead = replaced(getattr(pipe, component))
        off = [path for path, layer in there.items() if not _works(layer, adapter) or layer in dead]
        if len(there) < count or off:
            raise NoEffect(f"lora={kind}: {len(there) - len(off)} of {count} layers of {component} are on{_such(off)}")
    if not any(
        bool(_plain(up).any()) for one in found.values() for layer in one.values() for up in _ups(layer, adapter)
    ):
        raise NoEffect(f"lora={kind}: the LoRA's matrices are zero and change nothing")
    ranks = [rank for one in found.values() for layer in one.values() if (rank := layer.r.get(adapter)) is not None]
    numbers: dict[str, int | float | str] = {**wanted, "scale": scale}
    if ranks:
        numbers["rank"] = max(ranks)
    return Effect(f"{_told(wanted)} carry a LoRA", numbers)


def _samples(component: str, found: Mapping[str, Any], adapter: str) -> list[Sample]:
    every = max(1, len(found) // _SAMPLES)
    chosen = list(found.items())[::every][:_SAMPLES]
    return [
        Sample(
            component,
            path,
            layer.get_base_layer().weight[:_ROWS].detach().float().cpu().clone(),
            layer.get_delta_weight(adapter)[:_ROWS].detach().float().cpu(),
        )
        for path, layer in chosen
    ]


def _shown(pipe: Any, samples: Sequence[Sample], component: str) -> float:
    """Which part of the changes the weights of a component show now, measured along the changes."""
    along = length = 0.0
    for sample in (sample for sample in samples if sample.component == component):
        layer = getattr(pipe, component).get_submodule(sample.path)
        weight = next(layer_hooks(layer)).weights_map["weight"] if layer.weight.is_meta else layer.weight
        moved = _plain(weight)[: len(sample.before)].float().cpu() - sample.before
        along += float((moved * sample.change).sum())
        length += float((sample.change * sample.change).sum())
    return along / length if length else 0.0


def _length(values: Iterable[torch.Tensor]) -> float:
    return sum(float((value * value).sum()) for value in values) ** 0.5


def _plain(weight: Any) -> Any:
    """The weight as numbers, also where a quantizing step packed it."""
    quantized: bool = is_traceable_wrapper_subclass(weight)
    return (weight.dequantize() if quantized else weight).detach()


def _adapted(part: nn.Module) -> list[tuple[str, Any]]:
    return [(path, layer) for path, layer in part.named_modules() if isinstance(layer, BaseTunerLayer)]


def _has(layer: Any, adapter: str) -> bool:
    return any(adapter in getattr(layer, name, {}) for name in layer.adapter_layer_names)


def _works(layer: Any, adapter: str) -> bool:
    scaling = layer.scaling.get(adapter, 0.0)
    return not layer.disable_adapters and not layer.merged and adapter in layer.active_adapters and bool(scaling != 0)


def _ups(layer: Any, adapter: str) -> Iterator[torch.Tensor]:
    """The matrices that are zero when a LoRA is new."""
    if adapter in getattr(layer, "lora_B", {}):
        yield layer.lora_B[adapter].weight
    else:
        yield layer.get_delta_weight(adapter)


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} layers of {component}" for component, count in counts.items())


def _such(paths: Sequence[str]) -> str:
    return f", {paths[0]} is not" if paths else ""


def _brief(error: Exception) -> str:
    """The beginning of what a library says of a file; it goes on for each of its tensors."""
    said = one_line(error)
    return said if len(said) <= 300 else f"{said[:297]}..."


@contextmanager
def quiet() -> Iterator[None]:
    """Without a warning for each part that a file does not change, and without bars; what it misses is counted here."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("diffusers.loaders", "diffusers.utils"))}
    bars = of_transformers.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    if bars:
        of_transformers.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
        if bars:
            of_transformers.enable_progress_bar()
