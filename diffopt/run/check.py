"""The parent's side of ``diffopt check``: one process for all cells, another when it dies. Never imports torch."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from diffopt.recipe.plan import Plan
from diffopt.run.process import FALSIFYING, kill_group
from diffopt.schema.record import Frozen

WORKER = ("-m", "diffopt.pipeline.check")
LONGEST_READ = 65536  # bytes


class Answer(Frozen):
    """What became of one step of a cell; without a step: the cell has ended well."""

    cell: int  # its place among those asked for
    step: str | None
    ok: bool
    says: str
    refused: bool = False  # the step said itself that it cannot work on this pipeline


def check_all(plans: Sequence[Plan], deadline_s: float, variables: Mapping[str, str] | None = None) -> Iterator[Answer]:
    """Try the steps of each plan in turn, in a process of its own; an answer for each step as it comes.

    A cell ends with its first answer that is not ok, or with one without a step. One whose process dies, or gives no
    answer within ``deadline_s``, has failed, and another process takes the cells after it.
    """
    left = list(range(len(plans)))
    while left:
        cause = "ended"
        with tempfile.TemporaryDirectory(prefix="diffopt-check-") as place, _worker(plans, left, Path(place)) as child:
            process, descriptor = child
            for line in _lines(descriptor, deadline_s):
                if line is None:
                    cause = "hangs"
                    break
                answer = Answer.model_validate_json(line)
                if answer.step is None or not answer.ok:
                    left.remove(answer.cell)
                yield answer
            kill_group(process.pid, signal.SIGKILL)
            code = process.wait()
            if left and (code != 0 or cause == "hangs"):
                says = f"no answer within {deadline_s:g} s" if cause == "hangs" else _ending(code)
                yield Answer(cell=left.pop(0), step="the process", ok=False, says=says + _last_words(Path(place)))


@contextmanager
def _worker(plans: Sequence[Plan], left: Sequence[int], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The process, and the descriptor that its answers come from; nothing of its group is left behind."""
    cells = [
        {"number": n, "cell": plans[n].cell.model_dump(mode="json"), "choices": dict(plans[n].choices)} for n in left
    ]
    (folder / "cells.json").write_text(json.dumps(cells), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in FALSIFYING}
    environment |= {"DIFFUSERS_DISABLE_REMOTE_CODE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if all(plan.cell.recipe.hardware.device == "cpu" for plan in plans):
        environment["CUDA_VISIBLE_DEVICES"] = ""
    answers, write = os.pipe()
    try:
        with open(folder / "log.txt", "wb") as log:
            process = subprocess.Popen(
                # -P: a file in the user's directory must not stand in for a library
                [sys.executable, "-P", "-X", "faulthandler", *WORKER, str(folder / "cells.json")]
                + ["--answers-fd", str(write)],
                stdin=subprocess.PIPE,  # never written to: it ends when this process does, and so the worker knows
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(write,),
                env=environment,
                start_new_session=True,
            )
    finally:
        os.close(write)
    try:
        yield process, answers
    finally:
        if process.returncode is None:
            kill_group(process.pid, signal.SIGKILL)
            process.wait()
        assert process.stdin is not None
        process.stdin.close()
        os.close(answers)


def _lines(descriptor: int, deadline_s: float) -> Iterator[bytes | None]:
    """Whole lines until the writer ends; None when none comes in time."""
    unfinished = b""
    until = time.monotonic() + deadline_s
    while select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
        chunk = os.read(descriptor, LONGEST_READ)
        if not chunk:
            return
        *lines, unfinished = (unfinished + chunk).split(b"\n")
        yield from lines
        until = time.monotonic() + deadline_s
    yield None


def _ending(code: int) -> str:
    return f"it was killed by {signal.Signals(-code).name}" if code < 0 else f"it exited with code {code}"


def _last_words(folder: Path) -> str:
    """The end of the log: of a crash the Python frame, else the last line."""
    lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip()]
    crash = next((i for i, line in enumerate(said) if line.endswith("(most recent call first):")), None)
    last = said[crash + 1 : crash + 2] if crash is not None else said[-1:]
    return f"; it printed at last: {last[0][:200]}" if last else ""
