"""Memory layout of convolution weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from diffopt.errors import NoEffect, Refusal
from diffopt.schema.step import Effect, Order, Site, Step, register
from diffopt.steps.components import DiffusersComponents, attributes, missing, modules

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn


@register("layout")
class ChannelsLast(Step):
    """Store convolution weights with the channels last, so that convolutions run on NHWC without transposing.

    4-D weights become (out, height, width, in), 5-D ones of video VAEs (out, frames, height, width, in), one by one:
    ``Module.to(memory_format=torch.channels_last)`` raises at the first 5-D weight. Of the components, those that the
    model lacks are left (the first stages of DeepFloyd IF have no VAE).
    """

    order: ClassVar[Order] = Order.LAYOUT
    kind: Literal["channels_last"]
    components: DiffusersComponents

    def problems(self, site: Site) -> tuple[str, ...]:
        lacking = missing(site, self.components, "layout.components")
        if len(lacking) == len(self.components):
            return lacking
        if "denoiser" in self.components and site.model.denoiser == "transformer":
            return (
                "layout.components=denoiser: a transformer has no convolutions that gain from it; "
                "layout=channels_last_vae is for the VAE alone",
            )
        return ()

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        for name, module in self._modules(pipe, site).items():
            found = _convolutions(module)
            if not found:
                kind = type(module).__name__
                raise Refusal(f"layout=channels_last: {name} ({kind}) has no convolution that the layout changes")
            for weight in found:
                weight.data = weight.data.contiguous(memory_format=_format(weight))

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        numbers: dict[str, int | float | str] = {}
        for name, module in self._modules(pipe, site).items():
            found = _convolutions(module)
            left = sum(not weight.is_contiguous(memory_format=_format(weight)) for weight in found)
            if left or not found:
                raise NoEffect(
                    f"layout=channels_last: {left} of {len(found)} convolution weights of {name} are not channels_last"
                )
            numbers[name] = len(found)
        counts = ", ".join(f"{count} convolution weights of {name}" for name, count in numbers.items())
        return Effect(f"{counts} are channels_last", numbers)

    def _modules(self, pipe: DiffusionPipeline, site: Site) -> dict[str, nn.Module]:
        """Of the components that the model has."""
        present = [word for word in self.components if attributes(site.model, word)]
        return modules(pipe, site, present or self.components, "layout.components")


def _convolutions(module: nn.Module) -> list[torch.Tensor]:
    """4-D and 5-D weights whose bytes the layout really moves: with one input channel or one tap both orders agree."""
    return [
        weight
        for weight in module.parameters()
        if weight.ndim in (4, 5) and weight.shape[1] > 1 and max(weight.shape[2:]) > 1
    ]


def _format(weight: torch.Tensor) -> torch.memory_format:
    import torch

    return torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
