"""Layers of a LoRA whose weights can be replaced by another file's without compiling again, and the proof of it.

Compiled code keeps the addresses and shapes of weights, and takes plain numbers for constants. So the layers are padded
to one rank with zeros, their scales become tensors, and a swap copies into both.
Torch is imported by the functions that need it, so that a plan needs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffopt.errors import NoEffect, Refusal
from diffopt.models.lora import read_lora_facts
from diffopt.schema.step import Effect
from diffopt.schema.words import one_line
from diffopt.steps.lora.layers import load_lora_layers, lora_layers, modules_changed_by_lora, without_lora_warnings
from diffopt.steps.lora.proof import proof_of_live_lora

if TYPE_CHECKING:
    import torch

    from diffopt.schema.step import Site


def prepare_lora_swaps(
    pipe: Any,
    path: str | None,
    content: str | None,
    *,
    denoiser: str,
    adapter: str,
    scale: float,
    rank: int | None,
) -> None:
    """Load a file into layers of the denoiser that can be swapped for others up to ``rank``. Comes before compiling."""
    module = getattr(pipe, denoiser)
    if not hasattr(module, "enable_lora_hotswap"):
        raise Refusal(f"lora=hotswap: {type(module).__name__} has no enable_lora_hotswap")
    module.enable_lora_hotswap(target_rank=rank)
    load_lora_layers(pipe, path, content, kind="hotswap", adapter=adapter)
    if others := sorted(lora_layers(pipe, adapter).keys() - {denoiser}):
        raise Refusal(
            f"lora=hotswap: the file changes {', '.join(others)}, and only the denoiser's layers can be swapped"
        )
    _rescale(pipe, adapter, scale)


def swap_lora(pipe: Any, file: str | Path, *, adapter: str, scale: float = 1.0) -> None:
    """Replace the weights of a live LoRA by those of another file, in place; modules that it lacks are left unchanged.

    ``pipe.load_lora_weights(file, hotswap=True)`` does the same with a scale of 1. Raises Refusal where the file has
    layers that the first one has not, or a rank above the one that was prepared.
    """
    said = f"lora=hotswap: {Path(file).name}"
    path, name = Path(file), type(pipe).__name__
    if path.suffix != ".safetensors" or not path.is_file():
        raise Refusal(f"{said} is no safetensors file here")
    found, rank = lora_layers(pipe, adapter), read_lora_facts(path, said).rank
    if not found:
        raise Refusal(f"{said}: this {name} has no LoRA called {adapter} to put it in the place of")
    room = max(len(layer.lora_A[adapter].weight) for _, layer in _layers_by_path(pipe, adapter))
    if rank is None or rank > room:
        raise Refusal(f"{said} has rank {rank}, and the layers were prepared for {room}; set lora.target_rank")
    for component, wanted in modules_changed_by_lora(pipe, path, "lora=hotswap").items():
        if new := sorted(wanted - found.get(component, {}).keys()):
            raise Refusal(f"{said} changes {component}.{new[0]}, for which the first file made no layer")
    try:
        with without_lora_warnings():
            pipe.load_lora_weights(
                str(path), adapter_name=adapter, hotswap=True, use_safetensors=True, local_files_only=True
            )
    except (ValueError, RuntimeError, LookupError) as error:
        raise Refusal(f"{said} cannot be swapped in: {one_line(error)}") from error
    _rescale(pipe, adapter, scale)


def proof_of_lora_swaps(
    pipe: Any, site: Site, first: str | None, second: Path | None, *, adapter: str, scale: float, rank: int | None
) -> Effect:
    """Prove that the layers are there, can be swapped, and, with a ``second`` file, that a swap compiles nothing."""
    import torch
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    effect = proof_of_live_lora(pipe, "hotswap", adapter, scale)
    for path, layer in _layers_by_path(pipe, adapter):
        weights = [layer.lora_A[adapter].weight, layer.lora_B[adapter].weight]
        if any(is_traceable_wrapper_subclass(weight) for weight in weights):
            raise NoEffect(
                f"lora=hotswap: the matrices of {path} are quantized, into which nothing can be copied; leave them out "
                "with quant.skip=[lora_]"
            )
        if len(weights[0]) != rank or not isinstance(layer.scaling[adapter], torch.Tensor):
            raise NoEffect(f"lora=hotswap: {path} is not prepared for another file of rank {rank}")
    numbers = {**effect.numbers, "rank": int(rank or 0)}
    if second is None:
        return Effect(f"{effect.summary} of rank up to {rank} that can be swapped", numbers)
    assert first is not None
    numbers["recompiles"] = _swap_and_back(pipe, site, Path(first), second, adapter=adapter, scale=scale)
    return Effect(f"{effect.summary}, swapped to another file and back, nothing compiled anew", numbers)


def _swap_and_back(pipe: Any, site: Site, first: Path, second: Path, *, adapter: str, scale: float) -> int:
    """Swap, draw once, and swap back; the graphs that were compiled meanwhile, which is none."""
    from torch._dynamo.utils import counters

    places, before = _places(pipe, adapter), _weight_changes(pipe, adapter)
    swap_lora(pipe, second, adapter=adapter, scale=scale)
    try:
        if _all_equal(before, _weight_changes(pipe, adapter)):
            raise NoEffect(f"lora=hotswap: {second.name} changes the weights as the first file does")
        if _places(pipe, adapter) != places:
            raise NoEffect("lora=hotswap: the swap put new tensors in the place of those that compiled code knows")
        graphs = counters["stats"]["unique_graphs"]
        _draw_pictures(pipe, site)
        compiled = counters["stats"]["unique_graphs"] - graphs
    finally:
        swap_lora(pipe, first, adapter=adapter, scale=scale)
    if compiled:
        raise NoEffect(f"lora=hotswap: {compiled} graphs were compiled after the swap")
    if not _all_equal(before, _weight_changes(pipe, adapter)):
        raise NoEffect("lora=hotswap: the first file's weights did not come back")
    return compiled


def _draw_pictures(pipe: Any, site: Site) -> None:
    """One call of the pipeline as the workload asks for it; none where nothing is asked."""
    from diffopt.models import calls  # which imports torch

    if site.workload is not None:
        calls.draw_pictures(calls.calls_of_models([pipe], (site.model,), site.workload))


def _layers_by_path(pipe: Any, adapter: str) -> Iterator[tuple[str, Any]]:
    for component, found in lora_layers(pipe, adapter).items():
        for path, layer in found.items():
            yield f"{component}.{path}", layer


def _rescale(pipe: Any, adapter: str, scale: float) -> None:
    """Multiply the scales in place, which loading and swapping set to what the file says."""
    for _, layer in _layers_by_path(pipe, adapter):
        if bool(layer.lora_B[adapter].weight.any()):
            layer.scaling[adapter] *= scale  # a tensor
        else:  # a module that this file leaves unchanged keeps the scale of the one before, which must not pile up
            layer.scaling[adapter].fill_(1.0)


def _weight_changes(pipe: Any, adapter: str) -> list[torch.Tensor]:
    """What each of a sample of layers adds to its weight."""
    found = [layer for _, layer in _layers_by_path(pipe, adapter)]
    return [layer.get_delta_weight(adapter).clone() for layer in found[:: max(1, len(found) // 8)]]


def _all_equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    import torch

    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def _places(pipe: Any, adapter: str) -> list[Any]:
    """Where the tensors are that compiled code has looked up, and their shapes."""
    return [
        (tensor.data_ptr(), tensor.shape, tensor.dtype)
        for _, layer in _layers_by_path(pipe, adapter)
        for tensor in (layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter])
    ]
