"""Where the weights are while the pipeline runs.

What is on the device while the denoiser works, and who moves it:

======================  ============================================  ==================
``resident``            everything
``model_offload``       the denoiser                                  accelerate's hooks
``sequential_offload``  one layer                                     accelerate's hooks
``group_offload``       one group of blocks, or two with a stream     diffusers' hooks
======================  ============================================  ==================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from diffopt.errors import NoEffect, Refusal
from diffopt.schema.step import Effect, Order, Requirements, Site, Step, Trait, register
from diffopt.steps.components import Components, attributes, missing, modules, parts, refuse_copies
from diffopt.steps.memory.offload import (
    CountedWeights,
    check_offload_groups,
    check_weights_are_offloaded,
    count_onloads_of_group,
    module_bytes,
    offload_group_bytes,
    offload_layer_groups,
    offload_layer_hooks,
    offloaded_components,
    offloaded_mib,
    offloading_at_first_step,
    watch_offloading_at_first_step,
)

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn

# the CPU has no second memory to move weights to; diffusers refuses the first two there
_ON_CUDA = Requirements(
    devices=frozenset({"cuda"}), evidence="https://huggingface.co/docs/diffusers/main/en/optimization/memory#offloading"
)


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
        held = sum(map(module_bytes, parts(pipe).values()))
        return Effect(f"{offloaded_mib(held)} MiB of weights on {device}", {"bytes": held})


@register("memory")
class ModelOffload(Step):
    """Move whole components: each comes to the device at its first call and leaves when the next one is called.

    diffusers puts the hooks on anew after each call of the pipeline. They stand around a component's ``forward``.
    """

    order: ClassVar[Order] = Order.OFFLOAD
    kind: Literal["model_offload"]

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({Trait.MOVES_WEIGHTS, Trait.HOOKS_COMPONENTS})

    def requires(self) -> Requirements:
        return _ON_CUDA

    def on_device(self, weights: Mapping[str, float], working: str | None) -> float:
        return 0 if working is None else weights[working]

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        try:
            pipe.enable_model_cpu_offload(device=site.hardware.device)
        except ValueError as error:  # a class that does not say in which order it calls its components
            raise Refusal(f"memory=model_offload: {type(pipe).__name__}: {error}") from error
        watch_offloading_at_first_step(pipe, site.hardware.device)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        from accelerate.hooks import CpuOffload

        device, found, held = site.hardware.device, offloaded_components(pipe), offloading_at_first_step(pipe)
        for name, part in found.items():
            if not isinstance(getattr(part, "_hf_hook", None), CpuOffload):
                raise NoEffect(f"memory=model_offload: {name} has no hook that moves it (any more)")
        if held is None:
            raise NoEffect("memory=model_offload: no denoising step was seen")
        for name in attributes(site.model, "denoiser"):
            if held[name] < module_bytes(found[name]):
                raise NoEffect(
                    f"memory=model_offload: {held[name]} of {module_bytes(found[name])} bytes of {name} were on "
                    f"{device} while it denoised"
                )
        check_weights_are_offloaded(found, device, "model_offload")
        total, denoising = sum(map(module_bytes, found.values())), sum(held.values())
        return Effect(
            f"{offloaded_mib(denoising)} of {offloaded_mib(total)} MiB of weights on {device} while denoising, "
            "none between calls",
            {"bytes": total, "bytes_denoising": denoising},
        )


@register("memory")
class SequentialOffload(Step):
    """Move every layer by itself: its weights are copied to the device for each call and dropped after it.

    Between calls the modules hold nothing (tensors on the meta device); the weights stay on the host.
    """

    order: ClassVar[Order] = Order.OFFLOAD
    kind: Literal["sequential_offload"]

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({Trait.MOVES_WEIGHTS, Trait.GRAPH_BREAKS, Trait.HOOKS_LAYERS})

    def requires(self) -> Requirements:
        return _ON_CUDA

    def on_device(self, weights: Mapping[str, float], working: str | None) -> float:
        return 0

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        pipe.enable_sequential_cpu_offload(device=site.hardware.device)
        for part in offloaded_components(pipe).values():
            for hook in offload_layer_hooks(part):
                hook.weights_map = CountedWeights(hook.weights_map)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        loads: dict[str, int | float | str] = {}
        for name, part in offloaded_components(pipe).items():
            hooks = list(offload_layer_hooks(part))
            stay = sum(parameter.device.type != "meta" for parameter in part.parameters())
            if stay or not hooks:
                raise NoEffect(f"memory=sequential_offload: {len(hooks)} layers of {name} move, {stay} weights stay")
            loads[name] = sum(hook.weights_map.loads for hook in hooks)
        for name in attributes(site.model, "denoiser"):
            if not loads[name]:
                raise NoEffect(f"memory=sequential_offload: no weight of {name} was ever brought to the device")
        device, total = site.hardware.device, sum(map(int, loads.values()))
        return Effect(f"weights were copied to {device} {total} times, none is there between calls", loads)


@register("memory")
class GroupOffload(Step):
    """Move groups of layers: a few blocks of the denoiser are on the device at a time.

    ``offload_type`` is of the denoiser. Text encoders and the VAE move layer by layer: they have no list of blocks at
    their top, and a VAE is entered by ``decode``, which hooks around the whole do not see. For that reason the VAE is
    never streamed either. Parts that ``components`` does not name stay on the device.
    """

    order: ClassVar[Order] = Order.OFFLOAD
    kind: Literal["group_offload"]
    components: Components
    offload_type: Literal["block_level", "leaf_level"]
    num_blocks_per_group: Annotated[int, Field(ge=1)] | None
    use_stream: bool
    record_stream: bool
    low_cpu_mem_usage: bool
    non_blocking: bool

    @model_validator(mode="after")
    def _settings_go_together(self) -> GroupOffload:
        if (self.offload_type == "block_level") != (self.num_blocks_per_group is not None):
            raise ValueError(
                "memory.num_blocks_per_group is a number for memory.offload_type=block_level, and null for leaf_level"
            )
        if self.use_stream and self.num_blocks_per_group not in (1, None):
            raise ValueError("memory.use_stream=true moves single blocks: set memory.num_blocks_per_group=1")
        for name in ("record_stream", "low_cpu_mem_usage"):
            if getattr(self, name) and not self.use_stream:
                raise ValueError(f"memory.{name}=true does nothing without memory.use_stream=true")
        return self

    @property
    def traits(self) -> frozenset[Trait]:
        claims = {
            Trait.MOVES_WEIGHTS: True,
            Trait.GRAPH_BREAKS: True,
            Trait.HOOKS_LAYERS: self.offload_type == "leaf_level" and "denoiser" in self.components,
            Trait.PINS_IN_PASSING: self.low_cpu_mem_usage,
            Trait.LEARNS_ORDER: self.use_stream and "denoiser" in self.components,
        }
        return frozenset(trait for trait, holds in claims.items() if holds)

    def requires(self) -> Requirements:
        return _ON_CUDA

    def problems(self, site: Site) -> tuple[str, ...]:
        return missing(site, self.components, "memory.components")

    def on_device(self, weights: Mapping[str, float], working: str | None) -> float:
        return sum(size for part, size in weights.items() if part not in self.components)

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        found = modules(pipe, site, self.components, "memory.components")
        for name, module in found.items():
            try:
                self._offload(name, module, site)
            except ValueError as error:  # a class that says that it cannot
                raise Refusal(f"memory=group_offload: {name}: {error}") from error
            if self.num_blocks_per_group is not None and name == site.model.denoiser:
                check_offload_groups(name, module, self.num_blocks_per_group)
            refuse_copies(module, "memory=group_offload")
            for group in offload_layer_groups(module):
                count_onloads_of_group(group)
        for name, part in parts(pipe).items():
            if name not in found:
                part.to(site.hardware.device)

    def _offload(self, name: str, module: Any, site: Site) -> None:
        import torch
        from diffusers.hooks import apply_group_offloading

        blocks = self.offload_type == "block_level" and name in attributes(site.model, "denoiser")
        stream = self.use_stream and name != site.model.vae
        settings: dict[str, Any] = {
            "onload_device": torch.device(site.hardware.device),
            "offload_device": torch.device("cpu"),
            "offload_type": "block_level" if blocks else "leaf_level",
            "num_blocks_per_group": self.num_blocks_per_group if blocks else None,
            "use_stream": stream,
            "record_stream": self.record_stream and stream,
            "low_cpu_mem_usage": self.low_cpu_mem_usage,
            "non_blocking": self.non_blocking,
        }
        if hasattr(module, "enable_group_offload"):  # of diffusers; it knows which classes cannot
            module.enable_group_offload(**settings)
        else:
            apply_group_offloading(module, **settings)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        found = modules(pipe, site, self.components, "memory.components")
        numbers: dict[str, int | float | str] = {}
        told = []
        for name, module in found.items():
            made = offload_layer_groups(module)
            moves = sum(getattr(group, "onloads", 0) for group in made)
            if not moves:
                raise NoEffect(f"memory=group_offload: none of the {len(made)} groups of {name} was ever moved")
            largest, whole = max(map(offload_group_bytes, made)), module_bytes(module)
            numbers |= {f"{name}_groups": len(made), f"{name}_moves": moves}
            numbers |= {f"{name}_bytes": whole, f"{name}_largest_group_bytes": largest}
            told.append(f"{name} in {len(made)} groups of up to {offloaded_mib(largest)} of {offloaded_mib(whole)} MiB")
        check_weights_are_offloaded(found, site.hardware.device, "group_offload")
        return Effect(f"{', '.join(told)}; none on {site.hardware.device} between calls", numbers)


def _elsewhere(module: nn.Module, device: str) -> int:
    return sum(tensor.device.type != device for tensor in (*module.parameters(), *module.buffers()))
