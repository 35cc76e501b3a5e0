"""What is known of a cell from calling its pipeline once without weights, and what it means for the plan. No torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from diffopt.recipe.cell import Cell
from diffopt.recipe.planned import Plan, Problem
from diffopt.schema.record import Frozen

ANYWAY = "`diffopt run --no-deep` (in Python deep=False) leaves this call out"


class StageFiles(Frozen):
    """Where the small files of one stage's pipeline lie."""

    pipeline: str
    controlnet: str | None  # where it has a repository of its own
    cached: bool  # in the hub's cache, where some may be missing that a download brings


class DryCall(Frozen):
    """A call to make, by its place among those asked for."""

    number: int
    cell: Cell
    files: tuple[StageFiles, ...]  # of each stage


class DryAnswer(Frozen):
    """What became of a call without weights."""

    outcome: Literal["ok", "fails", "unclear"]  # unclear: it could not be made, which says nothing against the cell
    says: str = ""
    keys: tuple[str, ...] = ()  # groups and keys that are to blame beside the model
    remedy: str = ""
    lasting: bool = True  # the same call gives the same answer the next time


def plan_with_dry_answer(plan: Plan, answer: DryAnswer) -> Plan:
    """The plan with what the call has shown; a note is the cell's, so that its row repeats it."""
    name = plan.cell.recipe.model.name
    if answer.outcome == "ok":
        return replace(plan, called=True)
    if answer.outcome == "unclear":
        note = f"model={name}: no call without weights, which says nothing against it: {answer.says}"
        cell = plan.cell.model_copy(update={"notes": (*plan.cell.notes, note)})
        return replace(plan, cell=cell, notes=(*plan.notes, note))
    groups = {group for group, _ in plan.steps}
    keys = tuple(plan.choice(key) if key in groups else key for key in answer.keys)
    problem = Problem(answer.says, (f"model={name}", *keys), f"{answer.remedy}; {ANYWAY}")
    return replace(plan, problems=(*plan.problems, problem))
