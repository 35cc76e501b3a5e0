"""The process of ``diffopt check``: ``python -m diffopt.pipeline.check CELLS --answers-fd N``. Applies, calls, proves.

``CELLS`` is a JSON list of cells, planned by whoever wrote it. For each step it writes an answer, a JSON object a line,
to the descriptor, and one without a step when a cell has ended well. The first step that fails ends its cell, not the
process.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffopt.errors import DiffoptError
from diffopt.models import calls
from diffopt.pipeline.build import load_pipelines, proof_of_step
from diffopt.pipeline.failure import describe_pipeline_error, status_of_pipeline_error
from diffopt.pipeline.not_finite import since_which_step, where_not_finite
from diffopt.recipe.cell import Cell
from diffopt.recipe.planned import Plan

Tell = Callable[[str, str], None]  # what was tried, and what it did


class Failed(Exception):
    """Something of a cell does not work; what, why, and whether it refused to, as a step does that cannot."""


def check_steps_on_pipeline(plan: Plan, tell: Tell) -> None:
    """Load, apply each step in its order, call, and prove each step. Raises Failed at the first that does not work."""
    with _trying("loading"):
        pipes = load_pipelines(plan)
    pairs = list(zip(pipes, plan.cell.sites, strict=True))
    for pipe, site in pairs:
        for group, step in plan.steps:
            with _trying(plan.choice(group)):
                step.apply(pipe, site)
    with _trying("calling"):
        stages = calls.calls_of_models(pipes, plan.cell.recipe.model.stages, plan.cell.workload)
        calls.draw_pictures(stages)
        where = where_not_finite(stages)  # a second call: what learns or compiles in the first works in the next
        if where is not None:
            raise DiffoptError(f"values are not finite {where}: {since_which_step(plan)}")
    for group, step in plan.steps:
        says = []
        for pipe, site in pairs:
            stage = site.model.name if len(pairs) > 1 else None
            with _trying(plan.choice(group)):
                effect = proof_of_step(pipe, site, group, step, stage)
            says.append(f"{stage}: {effect.summary}" if stage else effect.summary)
        tell(plan.choice(group), "; ".join(says))


@contextmanager
def _trying(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the border of the process: beyond it there are only lines
        traceback.print_exc()
        raise Failed(what, describe_pipeline_error(error), status_of_pipeline_error(error) == "refused") from error


def _forget() -> None:
    """Nothing that one cell compiled or holds is left for the next one."""
    import torch

    torch._dynamo.reset()
    gc.collect()


def answer_pipeline_checks(arguments: Sequence[str] | None = None) -> None:
    """Work through the cells and leave; never returns to the caller."""
    parser = argparse.ArgumentParser(prog="python -m diffopt.pipeline.check", description="Try the steps of cells.")
    parser.add_argument("cells", type=Path)
    parser.add_argument("--answers-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    os.set_inheritable(options.answers_fd, False)  # a compiler that outlives us must not keep it open

    def answer(cell: int, step: str | None, ok: bool, says: str = "", refused: bool = False) -> None:
        line = {"cell": cell, "step": step, "ok": ok, "says": says, "refused": refused}
        os.write(options.answers_fd, json.dumps(line).encode() + b"\n")

    for number, data in _read(options.cells):
        try:
            cell = Cell.from_plain(data["cell"])
            plan = Plan(cell=cell, steps=cell.recipe.steps, problems=(), notes=())
            check_steps_on_pipeline(plan, lambda step, says, number=number: answer(number, step, True, says))  # type: ignore[misc]
            answer(number, None, True)
        except Failed as failed:
            what, why, refused = failed.args
            answer(number, what, False, why, refused)
        _forget()
    os._exit(0)  # taking torch apart takes seconds


def _read(path: Path) -> list[tuple[int, dict[str, Any]]]:
    return [(entry["number"], entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    answer_pipeline_checks()
