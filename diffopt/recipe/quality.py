"""The cells whose pictures those of another are compared with: its reference, and the reference under small changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diffopt.recipe.cell import Cell
from diffopt.recipe.options import customary_options, shipped_step
from diffopt.recipe.plan import Plan, make_plan
from diffopt.recipe.recipe import STEP_GROUPS, Recipe
from diffopt.schema.record import record_digest, record_identity
from diffopt.schema.step import Step
from diffopt.schema.words import PRECISION_OF_DTYPE

SHARED = ("scheduler", "lora")  # groups of steps of which a reference has the cell's own: they say what is drawn
PLAIN_ATTENTION = ("vanilla", "math")  # the first that the model has


@dataclass(frozen=True)
class Comparisons:
    """What the pictures of a cell are compared with, all with the cell's prompts, seeds, size, steps and batches."""

    reference: Plan
    floors: dict[str, Plan]  # by what is changed of the reference, which nobody calls an optimization


def comparisons_of_cell(cell: Cell) -> Comparisons:
    """The plans of the cells that a cell's pictures are compared with."""
    options = customary_options() | {"precision": PRECISION_OF_DTYPE[cell.recipe.model.dtype]}
    reference = _with_options(cell, {group: options[group] for group in STEP_GROUPS if group not in SHARED})
    floors = {}
    for option in PLAIN_ATTENTION:
        floors["attention"] = make_plan(_with_options(reference, {"attention": option}))
        if not floors["attention"].problems:
            break
    if cell.recipe.precision != reference.recipe.precision:
        own = cell.choices.get("precision", cell.recipe.precision.kind)
        floors["precision"] = make_plan(_with_steps(reference, {"precision": (own, cell.recipe.precision)}))
    return Comparisons(make_plan(reference), floors)


def drawing_id(cell: Cell) -> str:
    """Of the pictures of a cell: cells that differ in nothing but how they are measured have the same."""
    return record_digest({key: part for key, part in record_identity(cell).items() if key != "measure"})


def _with_options(cell: Cell, options: Mapping[str, str]) -> Cell:
    found = {group: (option, shipped_step(group, option)) for group, option in options.items()}
    return _with_steps(cell, {group: (option, step) for group, (option, step) in found.items() if step is not None})


def _with_steps(cell: Cell, steps: Mapping[str, tuple[str, Step]]) -> Cell:
    """Made anew, since a copy would keep the ids of the other."""
    had = {name: getattr(cell.recipe, name) for name in Recipe.model_fields}
    recipe = Recipe(**had | {group: step for group, (_, step) in steps.items()})
    choices = {**cell.choices, **{group: option for group, (option, _) in steps.items()}}
    same = {name: getattr(cell, name) for name in Cell.model_fields if name != "notes"}
    return Cell(**same | {"recipe": recipe, "choices": choices})
