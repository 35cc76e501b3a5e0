"""What will be done to a pipeline, in which order, and every reason why it cannot work. Needs no torch and no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diffopt import rules
from diffopt.cell import Cell
from diffopt.rules_case import Problem
from diffopt.step import Step


@dataclass(frozen=True)
class Plan:
    """The ordered steps of a cell with what is known against it."""

    cell: Cell
    steps: tuple[tuple[str, Step], ...]  # (group, step), in the order they touch the pipeline
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def status(self) -> str:
        return "refused" if self.problems else "ok"

    @property
    def reasons(self) -> list[str]:
        return [problem.text for problem in self.problems]

    def to_json(self, choices: Mapping[str, str]) -> dict[str, object]:
        """One entry of ``diffopt plan --json``."""
        steps = [{"order": step.order.name.lower(), "group": group, "kind": step.kind} for group, step in self.steps]
        return {
            "cell_id": self.cell.id,
            "choices": dict(choices),
            "status": self.status,
            "reasons": self.reasons,
            "notes": list(self.notes),
            "steps": steps,
        }


def make_plan(cell: Cell, choices: Mapping[str, str] | None = None) -> Plan:
    """Order the steps of ``cell`` and collect its problems; pure.

    Args:
        choices: option names by group, so that messages name what the user wrote; else they name kinds.
    """
    names = choices or {}
    return Plan(
        cell=cell, steps=cell.recipe.steps, problems=rules.problems(cell, names), notes=rules.notes(cell, names)
    )
