"""The parent's side of one worker process: start it, follow it, and say how it ended. Never imports torch."""

from __future__ import annotations

import json
import os
import select
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, get_args

from pydantic import ValidationError

from diffopt.machine.interpreter import Interpreter
from diffopt.machine.oom_killer import oom_kills
from diffopt.recipe.launch import Launch
from diffopt.results.result import Outcome, Stage, Status

Cause = Literal["ended", "deadline", "garbage", "stopped"]
# Each makes a pipeline something else than its recipe says, or its times something else than its speed, without a trace
# in any effect: torch's and cuBLAS's TF32 switches, diffusers' default attention, switches that turn compiling off,
# replace its backend, hide its errors or change what a compile mode means, and those that make CUDA wait or allocate
# anew at each call.
FALSIFYING = frozenset(
    {
        *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
        *("DIFFUSERS_ATTN_BACKEND", "DIFFUSERS_ATTN_CHECKS"),
        *("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE", "TORCHDYNAMO_SUPPRESS_ERRORS"),
        *("TORCH_COMPILE_OVERRIDE_BACKENDS", "TORCHINDUCTOR_CUDAGRAPHS"),
        *("TORCHINDUCTOR_MAX_AUTOTUNE", "TORCHINDUCTOR_MAX_AUTOTUNE_GEMM", "TORCHINDUCTOR_MAX_AUTOTUNE_POINTWISE"),
        *("TORCHINDUCTOR_COORDINATE_DESCENT_TUNING", "TORCHINDUCTOR_FREEZING", "TORCHINDUCTOR_USE_FAST_MATH"),
        *("CUDA_LAUNCH_BLOCKING", "PYTORCH_NO_CUDA_MEMORY_CACHING"),
    }
)
PLAN, OUTCOME = "plan.json", "outcome.json"  # in the folder of a row, while its worker runs: to it and from it
LONGEST_LINE = 4096  # bytes; a stage report is far shorter


@dataclass(frozen=True)
class Verdict:
    """How a worker ended. ``outcome`` is what it said itself; None when it could not."""

    status: Status
    stage: Stage
    reason: str | None
    outcome: Outcome | None = None


class Stop:
    """A request to end, shared by all cells in flight: they wait on ``fd``, which is readable from then on.

    The first signal lets each worker be asked to end; the second kills them at once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.fd, self._write = os.pipe()
        self._groups: set[int] = set()

    def __call__(self, signum: int, frame: FrameType | None = None) -> None:
        if self.signal is None:
            self.signal = signum
            os.write(self._write, b"!")
            return
        for group in tuple(self._groups):
            kill_group(group, signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until a signal comes; False when there is or was one."""
        if self.signal is None:
            select.select([self.fd], [], [], seconds)
        return self.signal is None

    @contextmanager
    def covering(self, group: int) -> Iterator[None]:
        """A second signal kills ``group`` while this lasts."""
        self._groups.add(group)
        try:
            yield
        finally:
            self._groups.discard(group)

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._write)


def run_child(
    folder: Path,
    launch: Launch,
    stop: Stop,
    *,
    gpu: str | None,
    on_stage: Callable[[Stage], None],
    interpreter: Interpreter | None = None,
    caches: Mapping[str, str] | None = None,
    start_only: bool = False,
) -> Verdict:
    """Run the worker on the plan in ``folder`` until it ends or must be ended; nothing of its group is left behind.

    Args:
        gpu: NVML uuid of the only GPU that the worker sees; None for the CPU.
        on_stage: called with each stage as it begins.
        interpreter: what runs the worker; None: the Python that runs this.
        caches: environment variables that say where compile caches lie; None: where they always do.
        start_only: end after the first call.
    """
    read, write = os.pipe()
    kills = oom_kills()
    process = None
    try:
        python = sys.executable if interpreter is None else interpreter.python
        command = _command(folder, write, launch, gpu, python) + (["--start-only"] if start_only else [])
        variables = {**(interpreter.variables if interpreter is not None else {}), **(caches or {})}
        process = _start(folder, command, write, gpu, variables)
        os.close(write)
        with stop.covering(process.pid):
            cause, stage = _follow(process, read, launch, stop, on_stage)
            if cause == "stopped":
                kill_group(process.pid, signal.SIGTERM)
            if cause in ("stopped", "ended"):
                _await_exit(process, launch.grace)
            kill_group(process.pid, signal.SIGKILL)  # before it is reaped: until then the group's number is its own
            code = process.wait()
    finally:
        os.close(read)
        if process is not None and process.returncode is None:
            kill_group(process.pid, signal.SIGKILL)
            process.wait()
        if process is not None and process.stdin is not None:
            process.stdin.close()
    return _verdict(folder, cause, stage, code, launch, killed_by_kernel=oom_kills() > kills)


def _command(folder: Path, progress: int, launch: Launch, gpu: str | None, python: str = sys.executable) -> list[str]:
    # -P: a file in the user's directory must not stand in for a library
    # -X: a crash leaves its Python frames in the log
    command = [python, "-P", "-X", "faulthandler", "-m", "diffopt.pipeline.worker"]
    command += [str(folder / PLAN), str(folder / OUTCOME), "--progress-fd", str(progress)]
    if launch.compile_artifact.save:
        command += ["--save-artifact"]
    if launch.compile_artifact.load is not None:
        command += ["--load-artifact", launch.compile_artifact.load, "--sha256", str(launch.compile_artifact.sha256)]
    return command + (["--gpu", gpu] if gpu else [])


def _start(
    folder: Path, command: Sequence[str], progress: int, gpu: str | None, variables: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    environment = {
        **{name: value for name, value in os.environ.items() if name not in FALSIFYING},
        "CUDA_VISIBLE_DEVICES": gpu or "",  # a cell for the CPU must not touch a GPU that another cell is measured on
        "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **variables,
    }
    with open(folder / "log.txt", "wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # never written to: it ends when this process does, and so the worker knows
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(progress,),
            env=environment,
            start_new_session=True,
        )


def _follow(
    process: subprocess.Popen[bytes], progress: int, launch: Launch, stop: Stop, on_stage: Callable[[Stage], None]
) -> tuple[Cause, Stage]:
    """Wait, without spinning, for the end of the reports, the end of the process, a deadline or a request to stop."""
    stage: Stage = "load"
    on_stage(stage)
    deadline = time.monotonic() + launch.deadlines.load
    unfinished = b""
    with selectors.DefaultSelector() as selector, _exit_descriptor(process) as exited:
        selector.register(progress, selectors.EVENT_READ)
        selector.register(stop.fd, selectors.EVENT_READ)
        if exited is not None:
            selector.register(exited, selectors.EVENT_READ)
        while ready := {key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))}:
            if stop.fd in ready:
                return "stopped", stage
            if progress not in ready:
                return "ended", stage  # the process has gone, and something that it left holds the descriptor
            chunk = os.read(progress, LONGEST_LINE)
            if not chunk:
                return ("garbage" if unfinished else "ended"), stage
            *lines, unfinished = (unfinished + chunk).split(b"\n")
            for line in lines:
                entered = _parse(line)
                if entered is None:
                    return "garbage", stage
                stage = entered
                deadline = time.monotonic() + getattr(launch.deadlines, stage)
                on_stage(stage)
            if len(unfinished) > LONGEST_LINE:
                return "garbage", stage
    return "deadline", stage


@contextmanager
def _exit_descriptor(process: subprocess.Popen[bytes]) -> Iterator[int | None]:
    """A descriptor that becomes readable when the process exits; None on systems other than Linux."""
    if not hasattr(os, "pidfd_open"):
        yield None
        return
    descriptor = os.pidfd_open(process.pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _parse(line: bytes) -> Stage | None:
    """The stage that a line reports; None for anything else. A worker is past ``plan`` before it starts."""
    try:
        report = json.loads(line)
    except ValueError:
        return None
    known = set(get_args(Stage)) - {"plan"}
    if not isinstance(report, dict) or set(report) != {"stage"} or report["stage"] not in known:
        return None
    stage: Stage = report["stage"]
    return stage


def _await_exit(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for the exit without reaping."""
    with _exit_descriptor(process) as exited:
        if exited is None:
            time.sleep(min(seconds, 1.0))
            return
        with selectors.DefaultSelector() as selector:
            selector.register(exited, selectors.EVENT_READ)
            selector.select(seconds)


def kill_group(group: int, signum: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS says so of a group of zombies
        os.killpg(group, signum)


def _verdict(folder: Path, cause: Cause, stage: Stage, code: int, launch: Launch, *, killed_by_kernel: bool) -> Verdict:
    if cause == "stopped":
        return Verdict("interrupted", stage, "interrupted while it ran; the same command runs it again")
    if cause == "deadline":
        seconds = getattr(launch.deadlines, stage)
        return Verdict("timeout", stage, f"more than {seconds:g} s in stage {stage} (launch.deadlines.{stage})")
    if cause == "garbage":
        return Verdict("crashed", stage, f"the worker's reports cannot be read{_last_words(folder)}")
    report = folder / OUTCOME
    if report.exists():
        try:
            outcome = Outcome.model_validate_json(report.read_bytes())
        except ValidationError:
            return Verdict("crashed", stage, f"the worker's outcome cannot be read{_last_words(folder)}")
        return Verdict(outcome.status, outcome.stage, outcome.reason, outcome)
    if code == -signal.SIGKILL and killed_by_kernel:
        return Verdict("oom", stage, "killed by the kernel's out-of-memory killer")
    return Verdict("crashed", stage, f"{_ending(code)}{_last_words(folder)}")


def _ending(code: int) -> str:
    if code >= 0:
        return f"the worker left no outcome and exited with code {code}"
    return f"the worker was killed by {signal.Signals(-code).name} ({signal.strsignal(-code)})"


def _last_words(folder: Path) -> str:
    """The end of the log, which is often the only witness: of a crash the Python frame, else the last line."""
    lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    crash = next((i for i, line in enumerate(said) if line.endswith("(most recent call first):")), None)
    last = said[crash + 1 : crash + 2] if crash is not None else said[-1:]
    return f"; its log ends: {last[0][:200]}" if last else "; its log is empty"
