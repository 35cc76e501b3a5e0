"""Plan a cell: its steps in order, and every reason why it cannot work. Needs no torch and no GPU."""

from __future__ import annotations

from diffopt.recipe import rules
from diffopt.recipe.cell import Cell
from diffopt.recipe.planned import Plan

__all__ = ["Plan", "make_plan"]


def make_plan(cell: Cell) -> Plan:
    """Order the steps of ``cell`` and collect its problems; pure.

    Messages name the options that led to the cell, as the user wrote them, and kinds where it knows of none.
    """
    return Plan(
        cell=cell, steps=cell.recipe.steps, problems=rules.problems_of_cell(cell), notes=rules.notes_on_cell(cell)
    )
