"""Layers of a LoRA whose weights can be replaced by another file's without compiling again, and the proof of it.

Compiled code keeps the addresses and shapes of weights, and takes plain numbers for constants. So the layers are padded
to one rank with zeros, their scales become tensors, and a swap copies into both. Imports torch and peft.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from diffopt.errors import NoEffect, Refusal
from diffopt.models.lora import checked, read_lora
from diffopt.schema.step import Effect
from diffopt.schema.words import one_line
from diffopt.steps.lora import layers as lora_layers
from diffopt.steps.lora import proof as lora_proof

if TYPE_CHECKING:
    from diffopt.schema.step import Site
    from diffopt.steps.lora.adapters import HotSwap


def prepare(pipe: Any, site: Site, step: HotSwap) -> None:
    """Load the step's file into layers that can be swapped. Comes before compiling."""
    denoiser = getattr(pipe, site.model.denoiser)
    if not hasattr(denoiser, "enable_lora_hotswap"):
        raise Refusal(f"lora=hotswap: {type(denoiser).__name__} has no enable_lora_hotswap")
    denoiser.enable_lora_hotswap(target_rank=step.target_rank or step.rank)
    lora_layers.load(pipe, step, adapter=step.adapter)
    if others := sorted(lora_layers.layers(pipe, step.adapter).keys() - {site.model.denoiser}):
        raise Refusal(
            f"lora=hotswap: the file changes {', '.join(others)}, and only the denoiser's layers can be swapped"
        )
    _rescale(pipe, step.adapter, step.scale)


def swap(pipe: Any, file: str | Path, *, adapter: str, scale: float = 1.0) -> None:
    """Replace the weights of a live LoRA by those of another file, in place; modules that it lacks are left unchanged.

    ``pipe.load_lora_weights(file, hotswap=True)`` does the same with a scale of 1. Raises Refusal where the file has
    layers that the first one has not, or a rank above the one that was prepared.
    """
    said = f"lora=hotswap: {Path(file).name}"
    path, name = Path(file), type(pipe).__name__
    if path.suffix != ".safetensors" or not path.is_file():
        raise Refusal(f"{said} is no safetensors file here")
    found, rank = lora_layers.layers(pipe, adapter), read_lora(path, said).rank
    if not found:
        raise Refusal(f"{said}: this {name} has no LoRA called {adapter} to put it in the place of")
    room = max(len(layer.lora_A[adapter].weight) for _, layer in _all(pipe, adapter))
    if rank is None or rank > room:
        raise Refusal(f"{said} has rank {rank}, and the layers were prepared for {room}; set lora.target_rank")
    for component, wanted in lora_layers.targets(pipe, path, "lora=hotswap").items():
        if new := sorted(wanted - found.get(component, {}).keys()):
            raise Refusal(f"{said} changes {component}.{new[0]}, for which the first file made no layer")
    try:
        with lora_layers.quiet():
            pipe.load_lora_weights(
                str(path), adapter_name=adapter, hotswap=True, use_safetensors=True, local_files_only=True
            )
    except (ValueError, RuntimeError, LookupError) as error:
        raise Refusal(f"{said} cannot be swapped in: {one_line(error)}") from error
    _rescale(pipe, adapter, scale)


def proof(pipe: Any, site: Site, step: HotSwap) -> Effect:
    """That the layers are there, that they can be swapped, and, with a second file, that a swap compiles nothing."""
    effect = lora_proof.proof(pipe, step.kind, step.adapter, step.scale)
    rank = step.target_rank or step.rank
    for path, layer in _all(pipe, step.adapter):
        weights = [layer.lora_A[step.adapter].weight, layer.lora_B[step.adapter].weight]
        if any(is_traceable_wrapper_subclass(weight) for weight in weights):
            raise NoEffect(
                f"lora=hotswap: the matrices of {path} are quantized, into which nothing can be copied; leave them out "
                "with quant.skip=[lora_]"
            )
        if len(weights[0]) != rank or not isinstance(layer.scaling[step.adapter], torch.Tensor):
            raise NoEffect(f"lora=hotswap: {path} is not prepared for another file of rank {rank}")
    numbers = {**effect.numbers, "rank": int(rank or 0)}
    if step.swap_path is None:
        return Effect(f"{effect.summary} of rank up to {rank} that can be swapped", numbers)
    numbers["recompiles"] = _swapped(pipe, site, step, checked(step.swap_path, step.swap_content))
    return Effect(f"{effect.summary}, swapped to another file and back, nothing compiled anew", numbers)


def _swapped(pipe: Any, site: Site, step: HotSwap, file: Path) -> int:
    """Swap, draw once, and swap back; the graphs that were compiled meanwhile, which is none."""
    places, first = _places(pipe, step.adapter), _changes(pipe, step.adapter)
    swap(pipe, file, adapter=step.adapter, scale=step.scale)
    try:
        second = _changes(pipe, step.adapter)
        if all(torch.equal(one, other) for one, other in zip(first, second, strict=True)):
            raise NoEffect(f"lora=hotswap: {file.name} changes the weights as the first file does")
        if _places(pipe, step.adapter) != places:
            raise NoEffect("lora=hotswap: the swap put new tensors in the place of those that compiled code knows")
        graphs = counters["stats"]["unique_graphs"]
        _draw(pipe, site)
        compiled = counters["stats"]["unique_graphs"] - graphs
    finally:
        assert step.path is not None
        swap(pipe, step.path, adapter=step.adapter, scale=step.scale)
    if compiled:
        raise NoEffect(f"lora=hotswap: {compiled} graphs were compiled after the swap")
    back = _changes(pipe, step.adapter)
    if not all(torch.equal(one, other) for one, other in zip(first, back, strict=True)):
        raise NoEffect("lora=hotswap: the first file's weights did not come back")
    return compiled


def _draw(pipe: Any, site: Site) -> None:
    """One call of the pipeline as the workload asks for it; none where nothing is asked."""
    from diffopt.models import calls

    if site.workload is not None:
        calls.run(calls.stages([pipe], (site.model,), site.workload))


def _all(pipe: Any, adapter: str) -> Iterator[tuple[str, Any]]:
    for component, found in lora_layers.layers(pipe, adapter).items():
        for path, layer in found.items():
            yield f"{component}.{path}", layer


def _rescale(pipe: Any, adapter: str, scale: float) -> None:
    """Multiply the scales in place, which loading and swapping set to what the file says."""
    for _, layer in _all(pipe, adapter):
        if bool(layer.lora_B[adapter].weight.any()):
            layer.scaling[adapter] *= scale  # a tensor
        else:  # a module that this file leaves unchanged keeps the scale of the one before, which must not pile up
            layer.scaling[adapter].fill_(1.0)


def _changes(pipe: Any, adapter: str) -> list[torch.Tensor]:
    """What each of a sample of layers adds to its weight."""
    found = [layer for _, layer in _all(pipe, adapter)]
    return [layer.get_delta_weight(adapter).clone() for layer in found[:: max(1, len(found) // 8)]]


def _places(pipe: Any, adapter: str) -> list[Any]:
    """Where the tensors are that compiled code has looked up, and their shapes."""
    return [
        (tensor.data_ptr(), tensor.shape, tensor.dtype)
        for _, layer in _all(pipe, adapter)
        for tensor in (layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter])
    ]
