"""What would make a cell fit that does not: options and values, each tried by the same estimate. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, product

from diffopt.recipe.cell import Cell
from diffopt.recipe.options import shipped_step
from diffopt.recipe.rules.estimate import estimate_memory_of_cell

# Shipped options that need less memory, in the order in which one would try them: what costs least comes first.
TRIED = {
    "precision": ("bf16", "fp16"),
    "vae": ("slicing", "tiling"),
    "memory": ("model_offload", "group_offload", "sequential_offload"),
    "quant": ("int8_weight", "int8_weight_text", "int4_weight"),
    "compile": ("regional",),  # needs no less, but goes with what moves weights
}
MOST = 4  # remedies that are worth reading

Chosen = tuple[tuple[str, str] | None, ...]  # (group, option), or None where the group stays as it is


@dataclass(frozen=True)
class Remedy:
    """A changed cell that fits, and the options that changed it, by group; the batch size stands in the cell alone."""

    cell: Cell
    options: tuple[tuple[str, str], ...]
    batch: bool  # whether the batch is smaller

    def __str__(self) -> str:
        words = [f"{group}={option}" for group, option in self.options]
        return " ".join([*words, f"workload.batch_size={self.cell.workload.batch_size}"] if self.batch else words)


def remedies_for_memory(cell: Cell, limit: float, works: Callable[[Remedy], bool]) -> list[Remedy]:
    """What brings ``cell`` below ``limit`` bytes with the fewest changes; empty where nothing that is tried does.

    ``works`` tells of a remedy that fits whether anything else speaks against it.
    """
    choices = [[*pairs, None] for pairs in _options(cell)]
    smaller = (True, False) if cell.workload.batch_size > 1 else (False,)
    tried = sorted(product(product(*choices), smaller), key=_changes)  # among as many, in the order of TRIED
    for count, alike in groupby(tried, key=_changes):
        fitting = (remedy for pairs, batch in alike if count for remedy in _fitting(cell, pairs, limit, batch=batch))
        if found := [remedy for remedy in fitting if works(remedy)]:
            return found[:MOST]
    return []


def _options(cell: Cell) -> list[list[tuple[str, str]]]:
    """What is tried, ``(group, option)`` by group; of the two half precisions the model's customary one.

    What is not compiled stays so.
    """
    other = ("precision", "bf16" if cell.recipe.model.dtype == "float16" else "fp16")
    groups = [group for group in TRIED if group != "compile" or cell.recipe.compile.kind != "none"]
    named = [[(group, option) for option in TRIED[group]] for group in groups]
    return [[pair for pair in pairs if pair != other and shipped_step(*pair) is not None] for pairs in named]


def _changes(tried: tuple[Chosen, bool]) -> int:
    options, batch = tried
    return sum(pair is not None for pair in options) + batch


def _fitting(cell: Cell, chosen: Chosen, limit: float, *, batch: bool) -> Iterator[Remedy]:
    """The cell with these options, where it fits; with ``batch`` the largest smaller batch with which it does."""
    options = tuple(pair for pair in chosen if pair is not None)
    recipe = cell.recipe.model_copy(update={group: shipped_step(group, option) for group, option in options})

    choices = {**cell.choices, **dict(options)}

    def drawing(pictures: int) -> Cell:
        workload = cell.workload.model_copy(update={"batch_size": pictures})
        return cell.model_copy(update={"choices": choices, "recipe": recipe, "workload": workload})

    def fits(changed: Cell) -> bool:
        needed = estimate_memory_of_cell(changed)
        return needed is not None and needed.total <= limit

    size = cell.workload.batch_size
    if batch and not fits(drawing(1)):  # then no larger one does
        return
    for changed in map(drawing, range(size - 1, 0, -1) if batch else (size,)):
        if fits(changed):
            yield Remedy(changed, options, batch)
            return
