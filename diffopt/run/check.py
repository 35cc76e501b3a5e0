"""The parent's side of ``diffopt check``: one process for all cells, another when it dies. Never imports torch."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffopt.machine.compile_cache import compile_caches_of_user
from diffopt.machine.log import last_words_of_log
from diffopt.machine.process import Child, how_process_ended
from diffopt.machine.temporary import temporary_folder
from diffopt.recipe.planned import Plan
from diffopt.run.process import FALSIFYING, OF_WORKERS
from diffopt.schema.record import Frozen

WORKER = ("-m", "diffopt.pipeline.check")
LONGEST_ANSWER = 65536  # bytes


class Answer(Frozen):
    """What became of one step of a cell; without a step: the cell has ended well."""

    cell: int  # its place among those asked for
    step: str | None
    ok: bool
    says: str
    refused: bool = False  # the step said itself that it cannot work on this pipeline


def run_check_processes(plans: Sequence[Plan], deadline_s: float) -> Iterator[Answer]:
    """Try the steps of each plan in turn, in a process of its own; an answer for each step as it comes.

    A cell ends with its first answer that is not ok, or with one without a step. One whose process dies, or gives no
    answer within ``deadline_s``, has failed, and another process takes the cells after it.
    """
    waiting = list(range(len(plans)))
    while waiting:
        with temporary_folder("check") as folder:
            yield from _answers(plans, waiting, folder, deadline_s)


def _answers(plans: Sequence[Plan], waiting: list[int], folder: Path, deadline_s: float) -> Iterator[Answer]:
    """Those of one process, until it ends; takes the cells that have ended out of ``waiting``."""
    with _start(plans, waiting, folder) as child:
        while isinstance(line := child.line(time.monotonic() + deadline_s), bytes):
            answer = Answer.model_validate_json(line)
            if answer.step is None or not answer.ok:
                waiting.remove(answer.cell)
            yield answer
        code = child.end()
    if waiting:
        says = f"no answer within {deadline_s:g} s" if line == "deadline" else f"it {how_process_ended(code)}"
        words = last_words_of_log(folder / "log.txt")
        says += f"; it printed at last: {words}" if words else ""
        yield Answer(cell=waiting.pop(0), step="the process", ok=False, says=says)


def _start(plans: Sequence[Plan], waiting: Sequence[int], folder: Path) -> Child:
    cells = [{"number": number, "cell": plans[number].cell.model_dump(mode="json")} for number in waiting]
    file = folder / "cells.json"
    file.write_text(json.dumps(cells), encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if name not in FALSIFYING}
    environment = inherited | OF_WORKERS | compile_caches_of_user() | {"TMPDIR": str(folder)}
    if all(plan.cell.recipe.hardware.device == "cpu" for plan in plans):
        environment["CUDA_VISIBLE_DEVICES"] = ""
    # -P: a file in the user's directory must not stand in for a library
    command = [sys.executable, "-P", "-X", "faulthandler", *WORKER, str(file), "--answers-fd"]
    with open(folder / "log.txt", "wb") as log:
        return Child(lambda answers: [*command, str(answers)], log, environment, longest=LONGEST_ANSWER)
