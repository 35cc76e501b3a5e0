"""Which Linears a quantizing step takes, and the proof that it took them.

A Linear is chosen when its path contains none of the words in ``skip`` and does not begin with one of the model's
``quant_skip`` (whole parts of the path: ``proj_out`` is the last layer, and not one inside a block), its inputs and
outputs are none of the pairs in ``skip_shapes``, both are at least ``min_features`` and multiples of 16 (the kernels'
tiles), and its inputs divide into groups where the scheme has groups. Projections that fusion replaced are no Linears
of the pipeline any more: they stay as they are and are not counted. Output embeddings that share their weight with the
input ones stay too, and so do the matrices of a live LoRA: they are small, and another file may replace them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from diffopt.errors import NoEffect, Refusal
from diffopt.machine import plain_yaml
from diffopt.machine.paths import shipped_conf
from diffopt.schema.step import Effect, Site
from diffopt.steps.components import Component, modules
from diffopt.steps.quant.values import first_non_finite_weight, mend_zero_scales

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn

# what plug-ins may rely on
__all__ = ["Selection", "Shapes", "Words", "proof", "quantize"]

_FUSED = {  # diffusers' names: the fused matrix, and what it replaces
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}
_CONFIG = "_diffopt_quantized_with"  # attribute of a quantized component: torchao's config, what a saved one needs

Size = Annotated[int, Field(ge=1)]
Shapes = tuple[tuple[Size, Size], ...]  # (inputs, outputs) of Linears


def _tell_layers_apart(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        if not any(letter.isalnum() for letter in word):
            raise PydanticCustomError(
                "in_every_path",
                "'{word}' is in nearly every path; name a part of paths, such as time_embed",
                {"word": word},
            )
    return words


Words = Annotated[tuple[str, ...], AfterValidator(_tell_layers_apart)]  # parts of paths


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
    @property
    def skip_shapes(self) -> tuple[tuple[int, int], ...]: ...


def quantize(step: Selection, pipe: DiffusionPipeline, site: Site, config: Any, *, multiple: int = 16) -> None:
    """Quantize the chosen Linears in place with one of torchao's configs; inputs come in ``multiple``s.

    Raises Refusal where a component has none that is chosen, or a filter that the user wrote leaves none.
    """
    from torchao.quantization import quantize_

    found = modules(pipe, site, step.components, "quant.components")
    linears = [linear for module in found.values() for linear in _linears(module)]
    refuse_idle_quant_words(site, step.skip, [path for path, _ in linears])
    _refuse_idle_shapes(site, step.skip_shapes, {_shape(part) for _, part in linears})
    for name, module in found.items():
        chosen = _chooser(step, site, multiple, _never_chosen(module))
        taken = {path: part for path, part in module.named_modules() if chosen(part, path)}
        if not taken:
            raise Refusal(
                f"quant={step.kind}: {name} ({type(module).__name__}) has no Linear that is large enough and not left "
                f"out; name other quant.components, or change quant.min_features, quant.skip or quant.skip_shapes"
            )
        if (spoiled := first_non_finite_weight(taken)) is not None:  # its scale would spoil a whole row
            raise Refusal(f"quant={step.kind}: {name}.{spoiled} before it is quantized; mend the model's files")
        quantize_(module, config, filter_fn=chosen)
        mend_zero_scales(taken.values())
        setattr(module, _CONFIG, config)


def config_quantized_with(module: nn.Module) -> Any:
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
    """Count the weights that ``quantized`` recognises.

    Raises NoEffect unless it does all chosen ones, at least one in each component, and all their values are finite.
    """
    numbers: dict[str, int | float | str] = {}
    counts: list[str] = []
    for name, module in modules(pipe, site, step.components, "quant.components").items():
        linears, shared = list(_linears(module)), frozenset(linears_tied_to_embeddings(module).values())
        why = [_left_by(step, site, multiple, shared, part, path) for path, part in linears]
        wanted = {path: part for (path, part), reason in zip(linears, why, strict=True) if reason is None}
        done = sum(quantized(part.weight) for part in wanted.values())
        if not done or done < len(wanted):
            raise NoEffect(f"quant={step.kind}: {done} of {len(wanted)} chosen Linears of {name} are quantized")
        if (spoiled := first_non_finite_weight(wanted)) is not None:
            raise NoEffect(f"quant={step.kind}: {name}.{spoiled}")
        numbers[name], numbers[f"{name}_plain"] = done, len(linears) - done
        counts.append(f"{done} of {len(linears)} Linears of {name}{_counts_left(step, why)}")
    return Effect(f"{', '.join(counts)} are {step.kind}", numbers)


def linears_replaced_by_fused(module: nn.Module) -> frozenset[nn.Module]:
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


def quant_path_begins_with(path: str, words: Iterable[str]) -> bool:
    """Whether a path begins with one of the words, by whole parts."""
    return any(f"{path}.".startswith(f"{word}.") for word in words)


def linears_tied_to_embeddings(module: nn.Module) -> dict[str, nn.Module]:
    """Linears that share their weight with an embedding, by path: the output embeddings of language models."""
    from torch import nn

    shared = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    linears = ((path, part) for path, part in module.named_modules() if isinstance(part, nn.Linear))
    return {path: part for path, part in linears if id(part.weight) in shared}


def is_lora_layer_path(path: str) -> bool:
    """Whether a path leads into the layers that PEFT puts beside a Linear: lora_A, lora_B and their kin."""
    return any(part.startswith("lora_") for part in path.split("."))


def _never_chosen(module: nn.Module) -> frozenset[nn.Module]:
    return linears_replaced_by_fused(module) | frozenset(linears_tied_to_embeddings(module).values())


def _linears(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The Linears that compute and belong to the model: path and module."""
    from torch import nn

    dead = linears_replaced_by_fused(module)
    for path, part in module.named_modules():
        if isinstance(part, nn.Linear) and part not in dead and not is_lora_layer_path(path):
            yield path, part


def _shape(linear: nn.Linear) -> tuple[int, int]:
    return linear.in_features, linear.out_features


def _chooser(
    step: Selection, site: Site, multiple: int, left: frozenset[nn.Module]
) -> Callable[[nn.Module, str], bool]:
    """torchao's ``filter_fn``: module and path to whether it is chosen."""
    from torch import nn

    def chosen(module: nn.Module, path: str) -> bool:
        if not isinstance(module, nn.Linear) or is_lora_layer_path(path):
            return False
        return _left_by(step, site, multiple, left, module, path) is None

    return chosen


def _left_by(
    step: Selection, site: Site, multiple: int, left: frozenset[nn.Module], linear: nn.Linear, path: str
) -> str | None:
    """What leaves a Linear as it is; None where it is chosen."""
    shape = _shape(linear)
    if linear in left:
        return "sharing their weight"
    if any(word in path for word in step.skip):
        return "quant.skip"
    if quant_path_begins_with(path, site.model.quant_skip):
        return "model.quant_skip"
    if shape in step.skip_shapes:
        return "quant.skip_shapes"
    if min(shape) < step.min_features:
        return "quant.min_features"
    if any(size % 16 for size in shape) or linear.in_features % multiple:
        return "the kernel's tiles"
    return None


def _counts_left(step: Selection, why: Iterable[str | None]) -> str:
    """How many Linears each filter left; also one that was asked for and left none."""
    counts = Counter(reason for reason in why if reason is not None)
    for name, values in (("quant.skip", step.skip), ("quant.skip_shapes", step.skip_shapes)):
        if values and name not in counts:
            counts[name] = 0
    return f" ({', '.join(f'{count} left by {reason}' for reason, count in counts.items())})" if counts else ""


def refuse_idle_quant_words(site: Site, words: Iterable[str], paths: Collection[str]) -> None:
    """Raises Refusal for a word of ``quant.skip`` that is in no path.

    Not for the words of shipped options, nor in a cascade, whose stages share one list.
    """
    idle = [word for word in words if word not in _shipped("skip") and not any(word in path for path in paths)]
    if idle and not site.cascade:
        raise Refusal(
            f"quant.skip=[{', '.join(idle)}] leaves nothing: no layer has that in its path; leave it out, or name a "
            f"part of paths such as {', '.join(sorted(paths)[:2])}"
        )


def _refuse_idle_shapes(site: Site, asked: Shapes, shapes: Collection[tuple[int, int]]) -> None:
    """As :func:`refuse_idle_quant_words`, for ``quant.skip_shapes``."""
    shipped = {tuple(shape) for shape in _shipped("skip_shapes")}
    idle = [list(shape) for shape in asked if shape not in shapes and shape not in shipped]
    if idle and not site.cascade:
        held = ", ".join(str(list(shape)) for shape in sorted(shapes))
        raise Refusal(
            f"quant.skip_shapes={idle} leaves nothing: no Linear has so many inputs and outputs; leave it out, or name "
            f"one of {held}"
        )


@cache
def _shipped(key: str) -> tuple[Any, ...]:
    """The values of a list in all shipped options: they serve many models, so one that leaves nothing is no mistake."""
    files = sorted((shipped_conf() / "quant").glob("*.yaml"))
    return tuple(value for file in files for value in plain_yaml.read_plain_yaml(file)[0].get(key, ()))
