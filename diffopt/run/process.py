"""The parent's side of one worker process: start it, follow it, and say how it ended. Never imports torch."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, get_args

from pydantic import ValidationError

from diffopt.errors import UsageError
from diffopt.machine.compile_cache import compile_caches_of_user
from diffopt.machine.files import open_new_file
from diffopt.machine.interpreter import Interpreter
from diffopt.machine.log import last_words_of_log
from diffopt.machine.oom_killer import kernel_oom_kills
from diffopt.machine.process import Child, Silence, how_process_ended, kill_process_group
from diffopt.machine.reading import MIB, read_file
from diffopt.recipe.launch import Launch
from diffopt.results.result import Outcome, Phase, Status
from diffopt.schema.words import one_line

# Each makes a pipeline something else than its recipe says, or its times something else than its speed, without a trace
# in any effect: torch's and cuBLAS's TF32 switches, diffusers' default attention, switches that turn compiling off,
# replace its backend, hide its errors or change what a compile mode means, and those that make CUDA wait or allocate
# anew at each call. The last takes docstrings away, which transformers reads when it is imported.
FALSIFYING = frozenset(
    {
        *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
        *("DIFFUSERS_ATTN_BACKEND", "DIFFUSERS_ATTN_CHECKS"),
        *("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE", "TORCHDYNAMO_SUPPRESS_ERRORS"),
        *("TORCH_COMPILE_OVERRIDE_BACKENDS", "TORCHINDUCTOR_CUDAGRAPHS"),
        *("TORCHINDUCTOR_MAX_AUTOTUNE", "TORCHINDUCTOR_MAX_AUTOTUNE_GEMM", "TORCHINDUCTOR_MAX_AUTOTUNE_POINTWISE"),
        *("TORCHINDUCTOR_COORDINATE_DESCENT_TUNING", "TORCHINDUCTOR_FREEZING", "TORCHINDUCTOR_USE_FAST_MATH"),
        *("CUDA_LAUNCH_BLOCKING", "PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTHONOPTIMIZE"),
    }
)
PLAN, OUTCOME = "plan.json", "outcome.json"  # what parent and worker say to each other, while that runs
LONGEST_OUTCOME = 64 * MIB
AGAIN = "the same command runs it again"
# the last is -P for the Pythons that a worker starts itself, as inductor does to try out what it compiled
OF_WORKERS = {"DIFFUSERS_DISABLE_REMOTE_CODE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONSAFEPATH": "1"}

Cause = Silence | Literal["over"]  # why a worker says no more; "over": the time of the sweep is


@dataclass(frozen=True)
class Verdict:
    """How a worker ended. ``outcome`` is what it said itself; None when it could not."""

    status: Status
    phase: Phase
    reason: str | None
    outcome: Outcome | None = None


class Stop:
    """A request to end, shared by all cells in flight: they wait on ``fd``, which is readable from then on.

    The first signal lets each worker be asked to end; the second kills them at once. ``end`` is when they are asked to
    end without one, on the clock of ``time.monotonic``.
    """

    def __init__(self, end: float = math.inf) -> None:
        self.signal: int | None = None
        self.end = end
        self.fd, self._write = os.pipe()
        self._groups: set[int] = set()

    def __call__(self, signum: int, frame: FrameType | None = None) -> None:
        if self.signal is None:
            self.signal = signum
            os.write(self._write, b"!")
            return
        for group in tuple(self._groups):
            kill_process_group(group, signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until a signal comes or the time is over; False when one of them is so."""
        if self.signal is None:
            select.select([self.fd], [], [], max(0.0, min(seconds, self.end - time.monotonic())))
        return self.signal is None and time.monotonic() < self.end

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


def run_worker_process(
    folder: Path,
    launch: Launch,
    stop: Stop,
    *,
    gpu: str | None,
    on_phase: Callable[[Phase], None],
    interpreter: Interpreter | None = None,
    places: Mapping[str, str] | None = None,
    exchange: Path | None = None,
    start_only: bool = False,
    draw_only: bool = False,
) -> Verdict:
    """Run the worker on a plan until it ends or must be ended; nothing of its group is left behind.

    Args:
        folder: of the row, for the log and the pictures.
        gpu: NVML uuid of the only GPU that the worker sees; None for the CPU.
        on_phase: called with each phase as it begins.
        interpreter: what runs the worker; None: the Python that runs this.
        places: environment variables that say where compile caches and temporary files lie; None: the user's caches,
            and where temporary files always do.
        exchange: where the plan lies and the outcome will, so that a study that is lost meanwhile takes no figures with
            it; None: in ``folder``.
        start_only: end after the first call.
        draw_only: draw the pictures of ``cell.quality`` and nothing else.
    """
    kills = kernel_oom_kills()
    python = sys.executable if interpreter is None else interpreter.python
    more = [*(["--start-only"] * start_only), *(["--draw-only"] * draw_only)]
    found = compile_caches_of_user() if places is None else places
    variables = {**(interpreter.variables if interpreter is not None else {}), **found}
    said = folder if exchange is None else exchange
    with open_new_file(folder / "log.txt") as log:
        try:
            worker = Child(
                lambda progress: _command(folder, progress, launch, gpu, python, said) + more,
                log,
                {**clean_environment(gpu), **OF_WORKERS, **variables},
                watched=stop.fd,
            )
        except OSError as error:
            what = f"{error.filename}: " if error.filename else ""
            return Verdict("crashed", "load", f"the worker cannot be started: {what}{error.strerror or error}")
    with worker, stop.covering(worker.group):
        cause, phase = _follow(worker, launch, stop.end, on_phase)
        if cause in ("stopped", "over"):
            worker.ask_to_end(launch.grace)
        elif cause == "ended":
            worker.await_exit(launch.grace)
        code = worker.end()
    return _verdict(folder, said / OUTCOME, cause, phase, code, launch, killed_by_kernel=kernel_oom_kills() > kills)


def clean_environment(gpu: str | None) -> dict[str, str]:
    """The environment variables of a process of which something is measured or tried, on that GPU or on the CPU."""
    inherited = {name: value for name, value in os.environ.items() if name not in FALSIFYING}
    return {**inherited, "CUDA_VISIBLE_DEVICES": gpu or ""}  # on the CPU it must not touch a GPU that another measures


def _command(
    folder: Path, progress: int, launch: Launch, gpu: str | None, python: str = sys.executable, said: Path | None = None
) -> list[str]:
    said = folder if said is None else said
    # -P: a file in the user's directory must not stand in for a library
    # -X: a crash leaves its Python frames in the log
    command = [python, "-P", "-X", "faulthandler", "-m", "diffopt.pipeline.worker"]
    command += [str(said / PLAN), str(said / OUTCOME), "--progress-fd", str(progress), "--folder", str(folder)]
    if launch.compile_artifact.save:
        command += ["--save-artifact"]
    if launch.compile_artifact.load is not None:
        command += ["--load-artifact", launch.compile_artifact.load, "--sha256", str(launch.compile_artifact.sha256)]
    return command + (["--gpu", gpu] if gpu else [])


def _follow(worker: Child, launch: Launch, end: float, on_phase: Callable[[Phase], None]) -> tuple[Cause, Phase]:
    """Tell each phase as it begins, until there is none any more; why, and which was the last.

    Args:
        end: when the time of the sweep is over.
    """
    phase: Phase | None = "load"
    while phase is not None:
        last = phase
        on_phase(last)
        deadline = time.monotonic() + getattr(launch.deadlines, last)
        said = worker.line(min(deadline, end))
        if not isinstance(said, bytes):
            return "over" if said == "deadline" and end < deadline else said, last
        phase = _parse(said)
    return "garbage", last


def _parse(line: bytes) -> Phase | None:
    """The phase that a line reports; None for anything else. A worker is past ``plan`` before it starts."""
    try:
        report = json.loads(line)
    except ValueError:
        return None
    known = set(get_args(Phase)) - {"plan"}
    if not isinstance(report, dict) or set(report) != {"phase"} or report["phase"] not in known:
        return None
    phase: Phase = report["phase"]
    return phase


def _verdict(
    folder: Path, left: Path, cause: Cause, phase: Phase, code: int, launch: Launch, *, killed_by_kernel: bool
) -> Verdict:
    """How the worker ended; ``left`` is where its outcome is."""
    if cause == "stopped":
        return Verdict("interrupted", phase, f"interrupted while it ran; {AGAIN}")
    if cause == "over":
        return Verdict("interrupted", phase, f"launch.minutes={launch.minutes:g} were over in phase {phase}; {AGAIN}")
    seconds = getattr(launch.deadlines, phase)
    late = f"more than {seconds:g} s in phase {phase} (launch.deadlines.{phase})"
    if cause == "deadline" and not (phase == "quality" and os.path.lexists(left)):  # there it is of what was measured
        return Verdict("timeout", phase, late)
    if cause == "garbage":
        return Verdict("crashed", phase, f"the worker's reports cannot be read{_last_words(folder)}")
    if os.path.lexists(left):
        try:
            outcome = Outcome.model_validate_json(read_file(left, OUTCOME, LONGEST_OUTCOME, follow=False))
        except ValidationError:
            return Verdict("crashed", phase, f"the worker's outcome cannot be read{_last_words(folder)}")
        except (OSError, UsageError) as error:
            why = f"the worker's outcome cannot be read ({one_line(error)}){_last_words(folder)}"
            return Verdict("crashed", phase, why)
        if cause == "deadline" and outcome.quality is not None:
            quality = outcome.quality.model_copy(update={"reason": f"the pictures were not compared: {late}"})
            outcome = outcome.model_copy(update={"quality": quality})
        return Verdict(outcome.status, outcome.phase, outcome.reason, outcome)
    if code == -signal.SIGKILL and killed_by_kernel:
        return Verdict("oom", phase, "killed by the kernel's out-of-memory killer")
    silent = "" if code < 0 else "left no outcome and "
    return Verdict("crashed", phase, f"the worker {silent}{how_process_ended(code)}{_last_words(folder)}")


def _last_words(folder: Path) -> str:
    words = last_words_of_log(folder / "log.txt")
    return f"; its log ends: {words}" if words else "; its log is empty"
