"""Fusing a LoRA, and the proof that one is at work: in the weights, or in layers beside them.

Torch is imported by the functions that need it, so that a plan needs none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffopt.errors import NoEffect
from diffopt.schema.step import Effect
from diffopt.steps.components import parts
from diffopt.steps.lora.layers import lora_adapted_layers, lora_layer_counts, lora_layers
from diffopt.steps.memory.offload import offload_layer_hooks
from diffopt.steps.quant.linears import linears_replaced_by_fused

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

_SAMPLES = "_diffopt_fused_lora"  # attribute of the pipeline
_MOST_SAMPLES = 8  # layers whose weights are looked at after fusing, in each component
_ROWS = 64  # outputs of them
# Of a change that was added to weights, the part that they show: rounding in half precision takes some away, and
# quantizing adds noise, which cancels out over thousands of weights.
_LEAST, _MOST = 0.5, 1.5


@dataclass(frozen=True)
class FusedSample:
    """Some rows of a weight before the LoRA was fused, and what it adds to them; float32, on the host."""

    component: str
    path: str
    before: torch.Tensor
    change: torch.Tensor


def fuse_lora(pipe: Any, *, adapter: str, scale: float) -> None:
    """Add the adapter to the weights and take its layers out, and remember some weights for the proof."""
    pipe.set_adapters([adapter], [scale])
    found = lora_layers(pipe, adapter)
    samples = [sample for component, one in found.items() for sample in _samples(component, one, adapter)]
    pipe.fuse_lora(components=[*found], adapter_names=[adapter])
    pipe.unload_lora_weights()
    setattr(pipe, _SAMPLES, samples)


def proof_of_fused_lora(pipe: DiffusionPipeline) -> Effect:
    """Compare weights as they are now with those before fusing. Raises NoEffect where the change is not in them."""
    samples: Sequence[FusedSample] | None = vars(pipe).get(_SAMPLES)
    if not samples:
        raise NoEffect("lora=fused: no LoRA was fused into this pipeline")
    if any(lora_adapted_layers(part) for part in parts(pipe).values()):
        raise NoEffect("lora=fused: LoRA layers still stand beside the weights")
    size = _length(sample.change for sample in samples) / _length(sample.before for sample in samples)
    if not size:
        raise NoEffect("lora=fused: the LoRA's matrices are zero and change nothing")
    shown = {component: _shown_part(pipe, samples, component) for component in {sample.component for sample in samples}}
    for component, part in shown.items():
        if not _LEAST <= part <= _MOST:
            raise NoEffect(
                f"lora=fused: the weights of {component} show {part:.0%} of a change by {size:.2%}; where they are too "
                "coarse for it, as half precision may be, choose lora=live"
            )
    numbers = {**lora_layer_counts(pipe), "change": size, "shown": min(shown.values())}
    return Effect(
        f"{_listed(lora_layer_counts(pipe))} changed by {size:.2%}, of which the weights show {numbers['shown']:.0%}",
        numbers,
    )


def proof_of_live_lora(pipe: DiffusionPipeline, kind: str, adapter: str, scale: float) -> Effect:
    """Count the layers that are there and switched on. Raises NoEffect where one of the file's is not."""
    wanted, found = lora_layer_counts(pipe), lora_layers(pipe, adapter)
    if not wanted or not found:
        raise NoEffect(f"lora={kind}: the pipeline has no layers of a LoRA")
    for component, count in wanted.items():
        there = found.get(component, {})
        dead = linears_replaced_by_fused(getattr(pipe, component))
        off = [path for path, layer in there.items() if not _works(layer, adapter) or layer in dead]
        if len(there) < count or off:
            raise NoEffect(f"lora={kind}: {len(there) - len(off)} of {count} layers of {component} are on{_such(off)}")
    ups = (up for one in found.values() for layer in one.values() for up in _ups(layer, adapter))
    if not any(bool(up.any()) for up in ups):
        raise NoEffect(f"lora={kind}: the LoRA's matrices are zero and change nothing")
    ranks = [rank for one in found.values() for layer in one.values() if (rank := layer.r.get(adapter)) is not None]
    numbers: dict[str, int | float | str] = {**wanted, "scale": scale}
    if ranks:
        numbers["rank"] = max(ranks)
    return Effect(f"{_listed(wanted)} carry a LoRA", numbers)


def _samples(component: str, found: Mapping[str, Any], adapter: str) -> list[FusedSample]:
    every = max(1, len(found) // _MOST_SAMPLES)
    chosen = list(found.items())[::every][:_MOST_SAMPLES]
    return [
        FusedSample(
            component,
            path,
            layer.get_base_layer().weight[:_ROWS].detach().float().cpu().clone(),
            layer.get_delta_weight(adapter)[:_ROWS].detach().float().cpu(),
        )
        for path, layer in chosen
    ]


def _shown_part(pipe: Any, samples: Sequence[FusedSample], component: str) -> float:
    """Which part of the changes the weights of a component show now, measured along the changes."""
    along = length = 0.0
    for sample in (sample for sample in samples if sample.component == component):
        layer = getattr(pipe, component).get_submodule(sample.path)
        moved = _weight(layer)[: len(sample.before)].float().cpu() - sample.before
        along += float((moved * sample.change).sum())
        length += float((sample.change * sample.change).sum())
    return along / length if length else 0.0


def _length(values: Iterable[torch.Tensor]) -> float:
    return float(sum(float((value * value).sum()) for value in values) ** 0.5)


def _weight(layer: Any) -> torch.Tensor:
    """A layer's weight as numbers: sequential offloading keeps it with its hook, and quantizing packs it, so that only
    its products with unit vectors tell it."""
    import torch
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    weight: Any = next(offload_layer_hooks(layer)).weights_map["weight"] if layer.weight.is_meta else layer.weight
    quantized: bool = is_traceable_wrapper_subclass(weight)
    if quantized:
        weight = torch.nn.functional.linear(
            torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device), weight
        ).T
    found: torch.Tensor = weight.detach()
    return found


def _works(layer: Any, adapter: str) -> bool:
    scaling = layer.scaling.get(adapter, 0.0)
    return not layer.disable_adapters and not layer.merged and adapter in layer.active_adapters and bool(scaling != 0)


def _ups(layer: Any, adapter: str) -> Iterator[torch.Tensor]:
    """The matrices that are zero when a LoRA is new."""
    if adapter in getattr(layer, "lora_B", {}):
        yield _weight(layer.lora_B[adapter])
    else:
        yield layer.get_delta_weight(adapter)


def _listed(found: Mapping[str, int]) -> str:
    return ", ".join(f"{count} layers of {component}" for component, count in found.items())


def _such(paths: Sequence[str]) -> str:
    return f", {paths[0]} is not" if paths else ""
