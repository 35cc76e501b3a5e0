"""What offloading moves, counted where it happens: sizes by device, loads of layers, onloads of groups.

diffusers and accelerate move weights inside of hooks that say nothing, and hooks can be lost or stand where nothing
passes. So each kind of hook is watched where watching costs nothing and dynamo does not see it.
Torch and accelerate are imported by the functions that need them, so that a plan needs none of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from diffopt.errors import NoEffect, Refusal
from diffopt.steps.components import parts

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn

_HELD = "_diffopt_held"  # attribute of the pipeline: bytes on the device by part, at its first denoising step


def offloaded_components(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """What a pipeline offloads by itself: all parts but those that its class leaves out."""
    return {name: part for name, part in parts(pipe).items() if name not in pipe._exclude_from_cpu_offload}


def watch_offloading_at_first_step(pipe: Any, device: str) -> None:
    """Note what is on the device when the scheduler is first called, which is right after the denoiser."""
    step = pipe.scheduler.step

    @functools.wraps(step)  # pipelines read its signature
    def noting_step(*args: Any, **kwargs: Any) -> Any:
        if _HELD not in vars(pipe):
            vars(pipe)[_HELD] = {name: module_bytes(part, on=device) for name, part in parts(pipe).items()}
        return step(*args, **kwargs)

    pipe.scheduler.step = noting_step


def offloading_at_first_step(pipe: DiffusionPipeline) -> Mapping[str, int] | None:
    """Bytes on the device by part, as :func:`watch_offloading_at_first_step` noted them; None before the first step."""
    held: Mapping[str, int] | None = vars(pipe).get(_HELD)
    return held


def check_weights_are_offloaded(found: Mapping[str, nn.Module], device: str, kind: str) -> None:
    """Raise NoEffect where weights are on the device between calls. On the CPU, which is the host, none can be."""
    for name, part in found.items():
        if device != "cpu" and (left := module_bytes(part, on=device)):
            raise NoEffect(f"memory={kind}: {left} bytes of {name} are still on {device} after the call")


class CountedWeights(Mapping[str, "torch.Tensor"]):
    """A layer's weights on the host, by name; ``loads`` is how often one was taken."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._weights = weights
        self.loads = 0

    def __getitem__(self, name: str) -> torch.Tensor:
        self.loads += 1
        return self._weights[name]

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def offload_layer_hooks(part: nn.Module) -> Iterator[Any]:
    """accelerate's hooks that load a layer's weights; one may stand in a row with others."""
    from accelerate.hooks import AlignDevicesHook

    for layer in part.modules():
        hook = getattr(layer, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            if isinstance(one, AlignDevicesHook) and one.offload:
                yield one


def offload_layer_groups(module: nn.Module) -> list[Any]:
    """diffusers' groups of layers of a component, each once."""
    registries = [registry for part in module.modules() if (registry := getattr(part, "_diffusers_hook", None))]
    hooks = [hook for registry in registries if (hook := registry.get_hook("group_offloading")) is not None]
    return list({id(hook.group): hook.group for hook in hooks}.values())


def check_offload_groups(name: str, module: nn.Module, blocks: int) -> None:
    """Raise Refusal where groups of so many blocks divide nothing, or are those that fewer would make.

    diffusers divides each list of blocks by itself, and moves what is in no list as one group, led by the module.
    """
    found = [len(group.modules) for group in offload_layer_groups(module) if group.onload_leader is not module]
    if not found:
        raise Refusal(
            f"memory.offload_type=block_level: {name} ({type(module).__name__}) has no list of blocks; "
            "choose memory=group_offload_leaf"
        )
    if blocks > 1 and (blocks > max(found) or len(found) == 1):
        raise Refusal(
            f"memory.num_blocks_per_group={blocks}: {name} has at most {max(found)} blocks in a row, which would all "
            "come at once; set it to less"
        )


def count_onloads_of_group(group: Any) -> None:
    """Let a group keep count, as ``group.onloads``, of how often it was brought to the device."""
    import torch

    onload = group.onload_
    group.onloads = 0

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # as the method itself is
    def counted() -> None:
        group.onloads += 1
        onload()

    group.onload_ = counted


def offload_group_bytes(group: Any) -> int:
    """Bytes of what a group moves."""
    return sum(map(module_bytes, group.modules)) + sum(map(_bytes, (*group.parameters, *group.buffers)))


def module_bytes(module: nn.Module, on: str | None = None) -> int:
    """Bytes of the module's tensors; ``on``: of those on this device alone."""
    tensors = (*module.parameters(), *module.buffers())
    return sum(_bytes(tensor) for tensor in tensors if on in (None, tensor.device.type))


def offloaded_mib(count: int | float | str) -> str:
    return f"{int(count) / 2**20:.1f}"


def _bytes(tensor: Any) -> int:
    """What the tensor takes; a quantized one says the size of what it stands for, and holds smaller ones."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return sum(_bytes(getattr(tensor, name)) for name in names)
    return int(tensor.numel() * tensor.element_size())
