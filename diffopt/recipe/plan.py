"""What will be done to a pipeline, in which order, and every reason why it cannot work. Needs no torch and no GPU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from diffopt.recipe import rules
from diffopt.recipe.cell import Cell
from diffopt.recipe.rules.case import Problem
from diffopt.schema.step import Step


@dataclass(frozen=True)
class Plan:
    """The ordered steps of a cell with what is known against it."""

    cell: Cell
    steps: tuple[tuple[str, Step], ...]  # (group, step), in the order they touch the pipeline
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return self.text()

    def text(self, code: Iterable[object] = ()) -> str:
        """The cell in full: its steps in order, ``code`` from elsewhere, the notes, and every reason against it."""
        workload, recipe = self.cell.workload, self.cell.recipe
        model, frames = recipe.model, "" if workload.frames is None else f" x {workload.frames} frames"
        lines = [
            f"cell {self.cell.id}, recipe {recipe.id}: {self.status}",
            f"model {model.name} on {recipe.hardware.name}, {workload.task}, "
            f"{workload.batch_size} x {workload.width}x{workload.height}{frames}, {workload.steps} steps",
            *(
                f"then {later.name}, {later.task}, {call.steps} steps"
                for later, call in zip(model.cascade, workload.later_stages, strict=False)
            ),
            f"steps, in the order they touch {'each' if model.cascade else 'the'} pipeline:",
        ]
        for group, step in self.steps:
            lines.append(f"  {step.order.name.lower():10} {group}={self.cell.choices.get(group, step.kind)}")
        lines += [f"runs: {each}" for each in code]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"refused: {reason}" for reason in self.reasons]
        return "\n".join(lines)

    @property
    def status(self) -> str:
        return "refused" if self.problems else "ok"

    @property
    def reasons(self) -> list[str]:
        return [problem.text for problem in self.problems]

    def to_json(self) -> dict[str, object]:
        """One entry of ``diffopt plan --json``."""
        steps = [{"order": step.order.name.lower(), "group": group, "kind": step.kind} for group, step in self.steps]
        return {
            "cell_id": self.cell.id,
            "choices": dict(self.cell.choices),
            "status": self.status,
            "reasons": self.reasons,
            "notes": list(self.notes),
            "steps": steps,
        }


def make_plan(cell: Cell) -> Plan:
    """Order the steps of ``cell`` and collect its problems; pure.

    Messages name the options that led to the cell, as the user wrote them, and kinds where it knows of none.
    """
    return Plan(cell=cell, steps=cell.recipe.steps, problems=rules.problems(cell), notes=rules.notes(cell))
