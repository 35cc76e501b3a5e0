"""Every reason why a well-formed cell cannot work, each stated once. Pure data in, problems out; no torch.

The reasons stand by subject: pairs of traits in ``conflicts``, the device and its compiler in ``hardware``,
memory in ``memory``, what is asked of a model in ``workload``, and what a step knows of itself in its own
``problems``. What is merely slow, or does nothing special on a device, is measured, not refused: ``notes``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

from diffopt.recipe.cell import Cell
from diffopt.recipe.planned import Problem
from diffopt.recipe.rules.case import Case
from diffopt.recipe.rules.conflicts import CONFLICTS, rule_on_hooks_in_graphs
from diffopt.recipe.rules.hardware import rule_on_compilers, rule_on_requirements
from diffopt.recipe.rules.memory import rule_on_memory
from diffopt.recipe.rules.notes import notes_on
from diffopt.recipe.rules.workload import rule_on_workload


def problems_of_cell(cell: Cell) -> tuple[Problem, ...]:
    """All reasons why ``cell`` cannot work on the hardware it names; empty when there is none."""
    case = Case(cell)
    return (*_other_problems(case), *rule_on_memory(case, _other_problems))


def notes_on_cell(cell: Cell) -> tuple[str, ...]:
    """What will work, but not as a newcomer may think."""
    return (*cell.notes, *notes_on(Case(cell)))


def notes_on_cells(cells: Iterable[Cell]) -> tuple[str, ...]:
    """The notes on several cells, each once."""
    return tuple(dict.fromkeys(note for cell in cells for note in notes_on_cell(cell)))


def _other_problems(case: Case) -> tuple[Problem, ...]:
    """All but memory."""
    return (
        *rule_on_workload(case),
        *_conflicts(case),
        *rule_on_hooks_in_graphs(case),
        *rule_on_requirements(case),
        *rule_on_compilers(case),
        *_own_problems(case),
    )


def _conflicts(case: Case) -> Iterator[Problem]:
    for conflict in CONFLICTS:
        for first, second in product(case.groups(conflict.first), case.groups(conflict.second)):
            if case.meet(first, second) or not conflict.in_one_part:
                keys = (case.key(first), case.key(second))
                yield Problem(conflict.fact, keys, conflict.remedy, conflict.evidence)


def _own_problems(case: Case) -> Iterator[Problem]:
    for group, step in case.cell.recipe.steps:
        for site in case.cell.sites:
            for fact in step.problems(site):
                yield Problem(fact, (case.key(group), f"model={site.model.name}"), f"choose another {group}")
