"""What needs more memory than the device has, or hardly less; by estimate, which has no figure for some models."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from diffopt.machine.hardware import GIB
from diffopt.recipe.planned import Problem
from diffopt.recipe.rules.case import Case
from diffopt.recipe.rules.estimate import NOTED, estimate_memory_of_cell
from diffopt.recipe.rules.remedies import TRIED, Remedy, remedies_for_memory


def rule_on_memory(case: Case, others: Callable[[Case], tuple[Problem, ...]]) -> Iterator[Problem]:
    """Refuse what needs more than the device has, and say which options would make it fit.

    ``others`` finds the problems of a cell but for memory, of which what is proposed may not have more.
    """
    needed, has = estimate_memory_of_cell(case.cell), case.hardware.memory_gib
    if needed is None or has is None or needed.total <= has * GIB:
        return

    def works(remedy: Remedy) -> bool:
        return len(others(Case(remedy.cell))) <= len(others(case))

    found = [str(remedy) for remedy in remedies_for_memory(case.cell, NOTED * has * GIB, works)]
    none = f"none of the options tried ({', '.join(TRIED)}) makes it fit with a tenth of the memory to spare"
    remedy = f"it would fit with {', or with '.join(found)}" if found else none
    keys = (f"model={case.cell.recipe.model.name}", case.place)
    yield Problem(f"needs about {needed}, {case.hardware.name} has {has:g}", keys, remedy)


def note_on_tight_memory(case: Case) -> Iterator[str]:
    """Note what fits with little to spare."""
    needed, has = estimate_memory_of_cell(case.cell), case.hardware.memory_gib
    if needed is not None and has is not None and NOTED * has * GIB < needed.total <= has * GIB:
        fact = f"needs about {needed}, {case.hardware.name} has {has:g}, and kernels take some too"
        yield f"model={case.cell.recipe.model.name}: {fact}"
