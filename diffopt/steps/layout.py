"""Memory layout of convolution weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from diffopt.components import DiffusersComponents, missing, modules
from diffopt.errors import NoEffect
from diffopt.step import Effect, Order, Site, Step, register

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn


@register("layout")
class ChannelsLast(Step):
    """Store 4-D weights as (out, height, width, in), so that convolutions run on NHWC without transposing."""

    order: ClassVar[Order] = Order.LAYOUT
    kind: Literal["channels_last"]
    components: DiffusersComponents

    def problems(self, site: Site) -> tuple[str, ...]:
        return missing(site, self.components, "layout.components")

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        import torch

        module: Any
        for module in modules(pipe, site, self.components, "layout.components").values():
            module.to(memory_format=torch.channels_last)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        import torch

        found = modules(pipe, site, self.components, "layout.components")
        weights = [weight for module in found.values() for weight in _convolutions(module)]
        if not weights:
            raise NoEffect(f"layout=channels_last: {', '.join(found)} has no convolution that the layout changes")
        left = sum(not weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
        if left:
            raise NoEffect(f"layout=channels_last: {left} of {len(weights)} convolution weights are not channels_last")
        return Effect(f"{len(weights)} convolution weights are channels_last", {"convolutions": len(weights)})


def _convolutions(module: nn.Module) -> list[torch.Tensor]:
    """4-D weights whose bytes the layout really moves: with one input channel or 1 x 1 kernels both orders agree."""
    return [
        weight
        for weight in module.parameters()
        if weight.ndim == 4 and weight.shape[1] > 1 and (weight.shape[2] > 1 or weight.shape[3] > 1)
    ]
