"""Where the weights are while the pipeline runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from diffopt.components import parts
from diffopt.errors import NoEffect
from diffopt.step import Effect, Order, Site, Step, register

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn


@register("memory")
class Resident(Step):
    """Keep every weight on the device: the fastest, and it needs the whole pipeline to fit."""

    order: ClassVar[Order] = Order.PLACE
    kind: Literal["resident"]

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        # a pipeline that was built on the device stays untouched: `to` warns about float16 on the CPU even then
        if any(_elsewhere(part, site.hardware.device) for part in parts(pipe).values()):
            pipe.to(site.hardware.device)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        device = site.hardware.device
        for name, part in parts(pipe).items():
            if away := _elsewhere(part, device):
                raise NoEffect(f"memory=resident: {away} tensors of {name} are not on {device}")
        size = sum(tensor.numel() * tensor.element_size() for part in parts(pipe).values() for tensor in _tensors(part))
        return Effect(f"{size / 2**20:.1f} MiB of weights on {device}", {"bytes": size})


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _elsewhere(module: nn.Module, device: str) -> int:
    return sum(tensor.device.type != device for tensor in _tensors(module))
