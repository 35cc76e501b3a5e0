"""The plan as data: what will be done to a pipeline, in which order, and every reason why it cannot work.

A plan is made once, by ``make_plan``; it travels to the worker as a file. Whoever only carries one out needs no rules.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffopt.errors import Refusal
from diffopt.machine.files import write_json
from diffopt.machine.reading import MIB, read_file
from diffopt.recipe.cell import Cell
from diffopt.schema.step import Step
from diffopt.schema.words import harmless_line

LONGEST = 64 * MIB  # of the file of a plan


@dataclass(frozen=True)
class Problem:
    """Why a cell cannot work: the fact, the keys that cause it, what to do instead, and where that is known from."""

    fact: str
    keys: tuple[str, ...]
    remedy: str
    evidence: str = ""

    @property
    def text(self) -> str:
        source = f" [{self.evidence}]" if self.evidence else ""
        return f"{' x '.join(self.keys)}: {self.fact}; {self.remedy}{source}"


@dataclass(frozen=True)
class Plan:
    """The ordered steps of a cell with what is known against it."""

    cell: Cell
    steps: tuple[tuple[str, Step], ...]  # (group, step), in the order they touch the pipeline
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    called: bool = False  # once without weights, and nothing was against it

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
            *measured_in_rounds([self]),
            *_compared_pictures(self.cell),
            f"steps, in the order they touch {'each' if model.cascade else 'the'} pipeline:",
        ]
        for group, step in self.steps:
            lines.append(f"  {step.order.name.lower():10} {self.choice(group)}")
        lines += ["called once without weights: ok"] if self.called else []
        lines += [f"runs: {each}" for each in code]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"refused: {reason}" for reason in self.reasons]
        return "\n".join(map(harmless_line, lines))

    def choice(self, group: str) -> str:
        """What was chosen in a group of steps, ``GROUP=OPTION``; its kind where the option has no name."""
        return f"{group}={self.cell.choices.get(group, getattr(self.cell.recipe, group).kind)}"

    @property
    def status(self) -> str:
        return "refused" if self.problems else "ok"

    @property
    def reasons(self) -> list[str]:
        return [problem.text for problem in self.problems]

    def to_json(self) -> dict[str, object]:
        """One entry of ``diffopt plan --json``."""
        return {
            "cell_id": self.cell.id,
            "choices": dict(self.cell.choices),
            "status": self.status,
            "reasons": self.reasons,
            "notes": list(self.notes),
            "called": self.called,
            "steps": _in_order(self.cell),
        }

    def write(self, path: Path) -> None:
        """For :func:`read_plan_file`: the plan as it is listed, with the whole cell."""
        write_json(path, {**self.to_json(), "cell": self.cell.model_dump(mode="json")})


def measured_in_rounds(plans: Sequence[Plan]) -> list[str]:
    """How many processes the cells that can work take, where some are measured in several rounds."""
    protocols = [plan.cell.measure for plan in plans if not plan.problems]
    rounds = sorted({protocol.rounds for protocol in protocols})
    if max(rounds, default=1) == 1:
        return []
    words, processes = " or ".join(map(str, rounds)), sum(protocol.processes for protocol in protocols)
    every = "" if len(plans) == 1 else ", every cell once before any again"
    return [f"measured in {words} rounds{every}: {processes} processes"]


def _compared_pictures(cell: Cell) -> list[str]:
    count = len(cell.quality.pictures)
    accepted = f", rejected if worse than {cell.quality.require}" if cell.quality.require else ""
    return [f"{count} pictures compared with those of its reference{accepted}"] if count else []


def read_plan_file(path: Path) -> Plan:
    """Read the plan of a cell that can work, as another process wrote it; it is not made anew.

    Raises Refusal for another one, and where this process does not read the same cell and the same steps out of it.
    """
    data = json.loads(read_file(path, str(path), LONGEST, follow=False))
    if data["reasons"]:
        raise Refusal("\n".join(data["reasons"]))
    cell = Cell.from_plain(data["cell"])
    if (cell.id, _in_order(cell)) != (data["cell_id"], data["steps"]):
        raise Refusal(
            f"{path.name} is of cell {data['cell_id']}, and this process reads cell {cell.id} out of it, or other "
            "steps: the same diffopt has to plan a cell and to run it"
        )
    return Plan(cell=cell, steps=cell.recipe.steps, problems=(), notes=tuple(data["notes"]), called=data["called"])


def _in_order(cell: Cell) -> list[dict[str, str]]:
    """The steps of a cell by name, in the order in which they touch the pipeline."""
    return [{"order": step.order.name.lower(), "group": group, "kind": step.kind} for group, step in cell.recipe.steps]
