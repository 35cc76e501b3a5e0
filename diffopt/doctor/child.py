"""The process in which ``diffopt doctor`` tries things, seen from outside: asked, timed, and replaced when it dies."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffopt.machine.nvml import Gpu
from diffopt.run.process import FALSIFYING, kill_group
from diffopt.schema.record import Frozen

WORKER = ("-m", "diffopt.doctor.worker")
REINSTALL = "reinstall torch for this driver and GPU; an error that stays with a newer torch is for its project"

Status = Literal["ok", "fails", "not here"]


class Finding(Frozen):
    """One line of the answer. ``remedy`` says what to install or change where something fails."""

    check: str
    status: Status
    seconds: float | None
    says: str
    remedy: str | None = None


@dataclass(frozen=True)
class Task:
    """A check for the child, and the arguments of its function there."""

    name: str  # as the line calls it
    check: str
    arguments: dict[str, Any]
    vital: bool = False  # without it no other check makes sense


class Child:
    """The process that runs the checks; started when it is first asked, and again after it crashed or hung."""

    def __init__(self, gpu: Gpu | None, deadline_s: float, worker: Sequence[str] = WORKER) -> None:
        self._gpu, self._deadline_s, self._worker = gpu, deadline_s, worker
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = -1
        self._folder = tempfile.TemporaryDirectory(prefix="diffopt-doctor-")

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
        self._folder.cleanup()

    def ask(self, task: Task) -> Finding:
        """The finding of one check, whatever becomes of the child."""
        process = self._process or self._start()
        assert process.stdin is not None
        begin = time.monotonic()
        with suppress(BrokenPipeError):  # it died after its last answer; reading tells
            process.stdin.write(json.dumps({"check": task.check, **task.arguments}).encode() + b"\n")
            process.stdin.flush()
        line = self._read(begin + self._deadline_s)
        if line is not None and line.endswith(b"\n"):
            finding = Finding(check=task.name, **json.loads(line))
            needs_words = finding.status == "fails" and finding.remedy is None
            return finding.model_copy(update={"remedy": _remedy(task)}) if needs_words else finding
        hangs, seconds = line is None, time.monotonic() - begin
        code = self._end()
        says = f"no answer within {self._deadline_s:g} s" if hangs else f"the process {_ending(code)}"
        return Finding(
            check=task.name, status="fails", seconds=seconds, says=says + self._last_words(), remedy=_remedy(task)
        )

    @property
    def _log(self) -> Path:
        return Path(self._folder.name) / "log.txt"

    def _start(self) -> subprocess.Popen[bytes]:
        folder = Path(self._folder.name)
        environment = {
            **{name: value for name, value in os.environ.items() if name not in FALSIFYING},
            "CUDA_VISIBLE_DEVICES": self._gpu.uuid if self._gpu else "",
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),  # what is compiled is compiled now
            "TRITON_CACHE_DIR": str(folder / "triton"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # a pool of compiling processes takes longer to start
        }
        self._answers, write = os.pipe()
        try:
            with open(self._log, "wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-X", "faulthandler", *self._worker, "--answers-fd", str(write)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(write,),
                    env=environment,
                    start_new_session=True,
                )
        finally:
            os.close(write)
        return self._process

    def _read(self, deadline: float) -> bytes | None:
        """One line; what there is of it when the child ends; None when it hangs."""
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            chunk = os.read(self._answers, 4096)
            if not chunk:
                return line
            line += chunk
        return line

    def _end(self) -> int:
        """Kill the child with what it started; its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        kill_group(process.pid, signal.SIGKILL)  # with the compilers that it started; one that crashed keeps its code
        code = process.wait()
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # an unwritten rest of a task
            process.stdin.close()
        os.close(self._answers)
        return code

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip()]
        crash = next((i for i, line in enumerate(said) if line.endswith("(most recent call first):")), None)
        last = said[crash + 1 : crash + 2] if crash is not None else said[-1:]
        return f"; it printed at last: {last[0][:200]}" if last else ""


def _ending(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def _remedy(task: Task) -> str:
    if task.name.startswith("attention="):
        return f"do not choose {task.name}, or reinstall what it needs for this torch and GPU"
    return REINSTALL
