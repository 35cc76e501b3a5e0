"""``diffopt doctor``: does what this machine should be able to do work? The parent's side; never imports torch.

Every check is a small test in a child process (checks.py) with a deadline: a crash or a hang is one line of the
answer, and a fresh child goes on with the next check.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffopt.config import Composer, catalogue
from diffopt.errors import Refusal
from diffopt.machine import hardware, nvml
from diffopt.machine.hardware import GIB
from diffopt.machine.log import last_words_of_log
from diffopt.machine.nvml import Gpu, driver_cuda
from diffopt.machine.process import Child, how_process_ended
from diffopt.machine.temporary import temporary_folder
from diffopt.machine.tested import tested_versions_in_words
from diffopt.run.process import clean_environment
from diffopt.schema.record import Frozen
from diffopt.schema.words import harmless_line

DEADLINE_S = 180.0  # of a check; importing torch takes seconds, compiling a small function up to a minute
NAME_WIDTH = 21  # of the longest name of a check
WORKER = ("-m", "diffopt.doctor.worker")
LONGEST_ANSWER = 2**20  # bytes; an error's text may be long
REINSTALL = "reinstall torch for this driver and GPU; an error that stays with a newer torch is for its project"
PLAIN = ("auto", "vanilla")  # attention options that are no kernel of their own


CheckStatus = Literal["ok", "fails", "not here"]


class Finding(Frozen):
    """One line of the answer. ``remedy`` says what to install or change where something fails."""

    check: str
    status: CheckStatus
    seconds: float | None
    says: str
    remedy: str | None = None


@dataclass(frozen=True)
class CheckTask:
    """A check for the child, and the arguments of its function there."""

    name: str  # as the line calls it
    check: str
    arguments: dict[str, Any]
    vital: bool = False  # without it no other check makes sense


class Checker:
    """The process that runs the checks; started when it is first asked, and again after it crashed or hung."""

    def __init__(self, gpu: Gpu | None, deadline_s: float, worker: Sequence[str] = WORKER) -> None:
        self._gpu, self._deadline_s, self._worker = gpu, deadline_s, worker
        self._child: Child | None = None
        self._stack = ExitStack()
        self._folder = self._stack.enter_context(temporary_folder("doctor"))

    def __enter__(self) -> Checker:
        return self

    def __exit__(self, *error: object) -> None:
        if self._child is not None:
            self._child.end()
        self._stack.close()

    def ask(self, task: CheckTask) -> Finding:
        """The finding of one check, whatever becomes of the process."""
        if self._child is None:
            self._child = self._start()
        begin = time.monotonic()
        self._child.tell(json.dumps({"check": task.check, **task.arguments}).encode())
        line = self._child.line(begin + self._deadline_s)
        if isinstance(line, bytes):
            finding = Finding(check=task.name, **json.loads(line))
            needs_words = finding.status == "fails" and finding.remedy is None
            return finding.model_copy(update={"remedy": _remedy(task)}) if needs_words else finding
        seconds = time.monotonic() - begin
        code, self._child = self._child.end(), None
        says = (
            f"no answer within {self._deadline_s:g} s"
            if line == "deadline"
            else f"the process {how_process_ended(code)}"
        )
        words = last_words_of_log(self._log)
        says += f"; it printed at last: {words}" if words else ""
        return Finding(check=task.name, status="fails", seconds=seconds, says=says, remedy=_remedy(task))

    @property
    def _log(self) -> Path:
        return self._folder / "log.txt"

    def _start(self) -> Child:
        own = {
            "TORCHINDUCTOR_CACHE_DIR": str(self._folder / "inductor"),  # what is compiled is compiled now
            "TRITON_CACHE_DIR": str(self._folder / "triton"),
            "TMPDIR": str(self._folder),  # a check that crashes or hangs leaves its own behind
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # a pool of compiling processes takes longer to start
            "PYTHONSAFEPATH": "1",  # -P, also for the Pythons that inductor starts
        }
        command = [sys.executable, "-P", "-X", "faulthandler", *self._worker, "--answers-fd"]
        variables = {**clean_environment(self._gpu.uuid if self._gpu else None), **own}
        with open(self._log, "wb") as log:
            return Child(lambda answers: [*command, str(answers)], log, variables, longest=LONGEST_ANSWER)


def examine_machine(
    listener: Callable[[Finding], None] = lambda finding: None, deadline_s: float = DEADLINE_S
) -> list[Finding]:
    """Look the machine up and try what it should be able to do; on the CPU where it has no NVIDIA GPU.

    Args:
        listener: told of each finding as it comes.
        deadline_s: seconds that a check may take.
    """
    found: list[Finding] = []

    def tell(finding: Finding) -> None:
        found.append(finding)
        listener(finding)

    try:
        gpu = _machine(tell)
    except Refusal as broken:  # which options work here cannot be told either
        remedy = "mend the driver: nvidia-smi must answer"
        tell(Finding(check="gpu", status="fails", seconds=None, says=str(broken), remedy=remedy))
        return found
    versions, tested = tested_versions_in_words()
    tell(Finding(check="versions", status="ok", seconds=None, says=versions, remedy=tested))
    with Checker(gpu, deadline_s) as checker:
        for todo in _checks(gpu):
            tell(todo if isinstance(todo, Finding) else checker.ask(todo))
            if isinstance(todo, CheckTask) and todo.vital and found[-1].status == "fails":
                break
    return found


def machine_works(found: Sequence[Finding]) -> bool:
    """Whether nothing fails that this machine should be able to do."""
    return all(finding.status != "fails" for finding in found)


def print_doctor_finding(finding: Finding) -> None:
    """One line to stdout, and one more with the remedy where there is one."""
    seconds = "" if finding.seconds is None else f"{finding.seconds:.1f} s"
    lines = [f"{finding.status:8}  {finding.check:{NAME_WIDTH}}  {seconds:>7}  {finding.says}"]
    if finding.remedy is not None:
        lines.append(f"{'':8}  {'':{NAME_WIDTH}}  {'':7}  -> {finding.remedy}")
    print("\n".join(map(harmless_line, lines)), flush=True)


def summarize_findings(found: Sequence[Finding]) -> str:
    """The last line: how many of each, and what to do next."""
    counts = Counter(finding.status for finding in found)
    said = f"{counts['ok']} ok, {counts['fails']} fail, {counts['not here']} not here."
    if not machine_works(found):
        return f"{said} Mend what fails, in the order above, and ask again."
    first = "diffopt run model=sd15 model.weights=random recipe=pytorch2 measure=quick"
    on_cpu = found[0].status == "not here"
    return f"{said} What this machine can do works; a first cell: {'diffopt run' if on_cpu else first}"


def _machine(tell: Callable[[Finding], None]) -> Gpu | None:
    """The first GPU that CUDA programs see, told with its driver; None for the CPU. Raises Refusal for a broken one."""
    gpus = nvml.detect_gpus()
    if not gpus:
        says = f"no NVIDIA driver or no visible GPU; everything below ran on the CPU, {hardware.cpu_model()}"
        tell(Finding(check="gpu", status="not here", seconds=None, says=says))
        return None
    for gpu in gpus:
        major, minor = gpu.compute_capability
        says = f"{gpu.name}, {gpu.memory_bytes / GIB:.0f} GiB, compute capability {major}.{minor}"
        says += f", driver {gpu.driver}"
        tell(Finding(check=f"gpu {gpu.index}", status="ok", seconds=None, says=says))
    return gpus[0]


def _checks(gpu: Gpu | None) -> Iterator[CheckTask | Finding]:
    """Every check in its order, or at once what this hardware or environment lacks for it."""
    device = "cpu" if gpu is None else "cuda"
    on = {"device": device}
    able = on if gpu is None else {**on, "capability": list(gpu.compute_capability)}
    driven = able if gpu is None else {**able, "driver_cuda": driver_cuda()}
    yield CheckTask("torch", "torch", driven, vital=True)
    if gpu is not None:
        yield CheckTask("cuda build", "cuda build", {**driven, "driver": gpu.driver}, vital=True)
    for name, dtype in (("fp16", "float16"), ("bf16", "bfloat16")):
        yield CheckTask(name, "half", {**able, "dtype": dtype})
    yield CheckTask("compile", "compile", able)
    if gpu is None:
        for name in ("cuda graphs", "compile + cuda graphs"):
            yield _not_here(name, "works on cuda only")
    else:
        yield CheckTask("cuda graphs", "cuda graphs", on)
        yield CheckTask("compile + cuda graphs", "compile graphs", able)
    composer = Composer([])
    yield from _products(composer, on)
    yield from _kernels(composer, on)


def _products(composer: Composer, on: dict[str, Any]) -> Iterator[CheckTask | Finding]:
    """int8 and fp8: torch's own product, and torchao's Linear where the option works here."""
    here = {row.option: row.here for row in catalogue.list_options(composer, "quant")}
    for kind in ("int8", "fp8"):
        why = here[f"{kind}_dynamic"]
        for name, check, more in (
            (f"{kind} matmul", f"{kind} product", {}),
            (f"{kind} torchao", "torchao", {"kind": kind}),
        ):
            yield CheckTask(name, check, {**on, **more}) if why == "yes" else _not_here(name, why)


def _kernels(composer: Composer, on: dict[str, Any]) -> Iterator[CheckTask | Finding]:
    """Every attention option that is a kernel."""
    for row in catalogue.list_options(composer, "attention"):
        if row.option in PLAIN:
            continue
        name = f"attention={row.option}"
        if row.here != "yes":
            yield _not_here(name, row.here)
            continue
        option = composer.compose([name]).data["attention"]
        if option["hub"] is not None:
            yield _not_here(name, "is downloaded from the Hugging Face hub when it is first used; not tried")
        else:
            yield CheckTask(name, "attention", {**on, "backend": option["backend"], "dtypes": option["dtypes"]})


def _not_here(name: str, why: str) -> Finding:
    return Finding(check=name, status="not here", seconds=None, says=why)


def _remedy(task: CheckTask) -> str:
    if task.name.startswith("attention="):
        return f"do not choose {task.name}, or reinstall what it needs for this torch and GPU"
    return REINSTALL
