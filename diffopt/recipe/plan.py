"""Plan a cell: its steps in order, and every reason why it cannot work. Needs no torch and no GPU."""

from __future__ import annotations

from diffopt.recipe import rules
from diffopt.recipe.cell import Cell
from diffopt.recipe.planned import Plan, Problem
from diffopt.recipe.rules.case import Case
from diffopt.steps.foreign import PluginFails

__all__ = ["Plan", "make_plan"]


def make_plan(cell: Cell) -> Plan:
    """Order the steps of ``cell`` and collect its problems; pure.

    Messages name the options that led to the cell, as the user wrote them, and kinds where it knows of none.
    """
    try:
        problems, notes = rules.problems_of_cell(cell), rules.notes_on_cell(cell)
    except PluginFails as error:
        problems, notes = (_problem_of_plugin(cell, error),), cell.notes
    return Plan(cell=cell, steps=cell.recipe.steps, problems=problems, notes=notes)


def _problem_of_plugin(cell: Cell, error: PluginFails) -> Problem:
    """That a step cannot be asked whether it works."""
    (group, *_) = [group for group, step in cell.recipe.steps if isinstance(step, error.step)]
    return Problem(str(error), (Case(cell).key(group),), f"choose another {group}, or another version of its package")
