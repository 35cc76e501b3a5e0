"""Cells of which it is known without a worker that they cannot run here. Never imports torch."""

from __future__ import annotations

from diffopt.errors import Refusal
from diffopt.machine import hardware, packages
from diffopt.machine.environment import detect_environment
from diffopt.machine.git import git_state
from diffopt.machine.interpreter import Interpreter, packages_for_workers, packages_of_foreign_steps
from diffopt.recipe.planned import Plan
from diffopt.results.result import Result
from diffopt.run import row
from diffopt.run.process import Verdict
from diffopt.schema.quality import PACKAGES
from diffopt.schema.step import Requirements


def row_of_refused_cell(plan: Plan, there: Interpreter | None) -> Result | None:
    """The row of a cell of which it is known without a worker that it cannot run here; None where it may.

    Args:
        there: the interpreter that is to run it, where it is another one than this.
    """
    if (verdict := refusal_of_cell(plan, there)) is None:
        return None
    where = detect_environment(plan.cell.recipe.hardware.device, git=git_state(), interpreter=there)
    return row.row_of_ended_run(None, plan.cell, where, verdict)


def is_refused_again(plan: Plan, there: Interpreter | None, found: Result) -> bool:
    """Whether this row says of a cell that cannot run here what a new one would say."""
    new = refusal_of_cell(plan, there)
    return new is not None and (new.status, new.phase, new.reason) == (found.status, found.phase, found.reason)


def refusal_of_cell(plan: Plan, there: Interpreter | None) -> Verdict | None:
    """Why a cell cannot run here, as far as it can be known without a worker.

    The phase tells what to make of it: ``plan`` is final; ``load`` is for want of a device or a package, and the cell
    is tried again the next time.

    Args:
        there: the interpreter that is to run it, where it is another one than this.
    """
    if plan.problems:
        return Verdict("refused", "plan", "\n".join(problem.text for problem in plan.problems))
    try:
        absent = hardware.why_hardware_is_not_here(plan.cell.recipe.hardware)
    except Refusal as broken:
        absent = str(broken)
    if absent is not None:
        return Verdict("refused", "load", absent)
    steps = [step for _, step in plan.steps]
    asked = () if there is None else (*packages_for_workers(), *packages_of_foreign_steps(steps))
    asked += PACKAGES if plan.cell.quality.pictures else ()
    lacking = packages.reason_of_lacking([Requirements(packages=asked), *(step.requires() for step in steps)], there)
    return None if lacking is None else Verdict("refused", "load", lacking)
