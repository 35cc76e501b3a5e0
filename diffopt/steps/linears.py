"""Which Linears a quantizing step takes, and the proof that it took them.

A Linear is chosen when its path contains none of the words in ``skip`` and does not begin with one of the model's
``quant_skip`` (whole parts of the path: ``proj_out`` is the last layer, and not one inside a block), both its sizes are
at least ``min_features`` and multiples of 16 (the kernels' tiles), and its inputs divide into groups where the scheme
has groups. Projections that fusion replaced are no Linears of the pipeline any more: they stay as they are and are not
counted. Output embeddings that share their weight with the input ones stay too, and so do the matrices of a live LoRA:
they are small, and another file may replace them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from diffopt.components import Component, modules
from diffopt.errors import NoEffect, Refusal
from diffopt.step import Effect, Site

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn


_FUSED = {  # diffusers' names: the fused matrix, and what it replaces
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}
_CONFIG = "_diffopt_quantized_with"  # attribute of a quantized component: torchao's config, what a saved one needs


class Selection(Protocol):
    """The fields that every scheme has."""

    @property
    def kind(self) -> str: ...
    @property
    def components(self) -> tuple[Component, ...]: ...
    @property
    def min_features(self) -> int: ...
    @property
    def skip(self) -> tuple[str, ...]: ...


def quantize(step: Selection, pipe: DiffusionPipeline, site: Site, config: Any, *, multiple: int = 16) -> None:
    """Quantize the chosen Linears in place with one of torchao's configs; inputs come in ``multiple``s.

    Raises Refusal where a component has none that is chosen.
    """
    from torchao.quantization import quantize_

    for name, module in modules(pipe, site, step.components, "quant.components").items():
        chosen = _chooser(step, site, multiple, _left(module))
        if not any(chosen(part, path) for path, part in module.named_modules()):
            raise Refusal(
                f"quant={step.kind}: {name} ({type(module).__name__}) has no Linear that is large enough and not left "
                f"out; name other quant.components, or change quant.min_features or quant.skip"
            )
        quantize_(module, config, filter_fn=chosen)
        setattr(module, _CONFIG, config)


def quantized_with(module: nn.Module) -> Any:
    """torchao's config that :func:`quantize` used on a component; None where it was not quantized."""
    return getattr(module, _CONFIG, None)


def proof(
    step: Selection,
    pipe: DiffusionPipeline,
    site: Site,
    quantized: Callable[[torch.Tensor], bool],
    *,
    multiple: int = 16,
) -> Effect:
    """Count the weights that ``quantized`` recognises. Raises NoEffect unless it does all chosen ones, at least one
    in each component."""
    from torch import nn

    numbers: dict[str, int | float | str] = {}
    counts: list[str] = []
    for name, module in modules(pipe, site, step.components, "quant.components").items():
        dead = replaced(module)
        chosen = _chooser(step, site, multiple, _left(module))
        linears = [
            (path, part)
            for path, part in module.named_modules()
            if isinstance(part, nn.Linear) and part not in dead and not _of_lora(path)
        ]
        wanted = [part for path, part in linears if chosen(part, path)]
        done = sum(quantized(part.weight) for part in wanted)
        if not done or done < len(wanted):
            raise NoEffect(f"quant={step.kind}: {done} of {len(wanted)} chosen Linears of {name} are quantized")
        numbers[name], numbers[f"{name}_plain"] = done, len(linears) - done
        counts.append(f"{done} of {len(linears)} Linears of {name}")
    return Effect(f"{', '.join(counts)} are {step.kind}", numbers)


def replaced(module: nn.Module) -> frozenset[nn.Module]:
    """The projections that stand unused beside a fused matrix: to_q, to_k, to_v beside to_qkv, and so on."""
    return frozenset(
        getattr(attention, name)
        for attention in module.modules()
        if getattr(attention, "fused_projections", False)
        for matrix, names in _FUSED.items()
        if hasattr(attention, matrix)
        for name in names
        if hasattr(attention, name)
    )


def begins_with(path: str, words: Iterable[str]) -> bool:
    """Whether a path begins with one of the words, by whole parts."""
    return any(f"{path}.".startswith(f"{word}.") for word in words)


def tied(module: nn.Module) -> dict[str, nn.Module]:
    """Linears that share their weight with an embedding, by path: the output embeddings of language models."""
    from torch import nn

    shared = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    linears = ((path, part) for path, part in module.named_modules() if isinstance(part, nn.Linear))
    return {path: part for path, part in linears if id(part.weight) in shared}


def _of_lora(path: str) -> bool:
    """Whether a path leads into the layers that PEFT puts beside a Linear: lora_A, lora_B and their kin."""
    return any(part.startswith("lora_") for part in path.split("."))


def _left(module: nn.Module) -> frozenset[nn.Module]:
    return replaced(module) | frozenset(tied(module).values())


def _chooser(
    step: Selection, site: Site, multiple: int, left: frozenset[nn.Module]
) -> Callable[[nn.Module, str], bool]:
    """torchao's ``filter_fn``: module and path to whether it is chosen."""
    from torch import nn

    def chosen(module: nn.Module, path: str) -> bool:
        if not isinstance(module, nn.Linear) or module in left or _of_lora(path):
            return False
        if any(word in path for word in step.skip) or begins_with(path, site.model.quant_skip):
            return False
        sizes = (module.in_features, module.out_features)
        if min(sizes) < step.min_features or any(size % 16 for size in sizes):
            return False
        return module.in_features % multiple == 0

    return chosen
