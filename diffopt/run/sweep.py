"""Runs cells: one worker process each, a row for whatever becomes of it. Never imports torch."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from diffopt.errors import Interrupted, Refusal, UsageError
from diffopt.machine import hardware, packages
from diffopt.machine.environment import Environment, Git, environment, git_state
from diffopt.machine.interpreter import Interpreter, interpreters, steps_from_elsewhere, worker_requirements
from diffopt.machine.nvml import Gpu
from diffopt.recipe.cell import Cell
from diffopt.recipe.labels import labels, one_line
from diffopt.recipe.launch import Launch, default_launch
from diffopt.recipe.plan import Plan, make_plan
from diffopt.results.result import Result, Stage
from diffopt.results.study import Study
from diffopt.run import row
from diffopt.run.events import (
    CellFinished,
    CellStarted,
    Event,
    Listener,
    RowUnreadable,
    StageStarted,
    SweepFinished,
    SweepStarted,
    silent,
)
from diffopt.run.process import Stop, Verdict
from diffopt.run.starts import run_worker
from diffopt.schema.step import Requirements

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Request(Protocol):
    """What is to be run: a cell, and the option names that led to it."""

    @property
    def cell(self) -> Cell: ...
    @property
    def choices(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class _One:
    cell: Cell
    choices: Mapping[str, str]


def run_one(
    cell: Cell,
    *,
    study: str | Path | Study | None = None,
    launch: Launch | None = None,
    choices: Mapping[str, str] | None = None,
    listener: Listener = silent,
) -> Result:
    """Measure one cell and keep its row, whatever becomes of it; see :func:`run_all`.

    Args:
        study: name, directory or Study that keeps it; a fresh one without.
    """
    (result,) = run_all([_One(cell, choices or {})], study, launch, listener)
    return result


def run_all(
    requests: Sequence[Request],
    study: str | Path | Study | None = None,
    launch: Launch | None = None,
    listener: Listener = silent,
    others: Mapping[str, Interpreter] | None = None,
) -> list[Result]:
    """Measure each distinct cell once, skip those whose row the study keeps, and return the rows in the order asked.

    Cells for GPUs run first, one at a time on each GPU that fits; cells for the CPU run alone after them, because
    a busy host is what they measure.

    Args:
        study: name, directory or Study; continued where it stopped. None makes a fresh one.
        launch: deadlines; None takes the shipped ``launch=local``.
        listener: called with the events of events.py, one at a time.
        others: what :func:`interpreters` gave for the cells' runtimes, where that lasts already; None asks them.

    Raises:
        Interrupted: SIGINT or SIGTERM came. The rows so far, those of the interrupted cells among them, are kept.
        UsageError: the study cannot be used, or a cell's interpreter.
    """
    if launch is None:
        launch = default_launch()
    distinct = list({request.cell.id: request for request in requests}.values())
    asking = interpreters(request.cell.runtime for request in requests) if others is None else nullcontext(others)
    with asking as found, _stopping() as stop:
        if not isinstance(study, Study):
            study = Study.fresh() if study is None else Study.create(study)
        sweep = _Sweep(study, launch, listener, stop, names=_names(distinct), others=found)
        sweep.run(distinct)
    if stop.signal is not None:
        raise Interrupted(stop.signal)
    return [sweep.rows[request.cell.id] for request in requests]


def _names(requests: Sequence[Request]) -> dict[str, str]:
    """What the progress calls each cell: what tells it from the others; its id when there is nothing to tell."""
    points = [(request.choices, request.cell.model_dump(mode="json")) for request in requests]
    return {r.cell.id: one_line(words) or r.cell.id for r, words in zip(requests, labels(points), strict=True)}


@contextmanager
def _stopping() -> Iterator[Stop]:
    """Signals become a request to stop while this lasts. Only the main thread can take them; others never stop."""
    stop = Stop()
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stop) for number in SIGNALS} if main else {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.close()


@dataclass
class _Sweep:
    """The state of one :func:`run_all`."""

    study: Study
    launch: Launch
    listener: Listener
    stop: Stop
    names: Mapping[str, str]
    others: Mapping[str, Interpreter]  # by the runtime's name; the Python that runs this is not among them
    git: Git | None = field(default_factory=git_state)
    rows: dict[str, Result] = field(default_factory=dict)
    places: dict[tuple[str, str | None, str], Environment] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, requests: Sequence[Request]) -> None:
        self.tell(SweepStarted(len(requests)))
        fitting = {request.cell.id: _gpus(request.cell) for request in requests}
        gpus = {gpu.uuid: gpu for found in fitting.values() for gpu in found}
        waiting = [request for request in requests if fitting[request.cell.id]]

        def lane(gpu: Gpu) -> None:
            while (request := self._take(waiting, fitting, gpu)) is not None:
                self.one(request, gpu)

        if gpus:
            with ThreadPoolExecutor(max_workers=len(gpus)) as pool:
                list(pool.map(lane, gpus.values()))
        for request in requests:
            if not fitting[request.cell.id] and self.stop.signal is None:
                self.one(request, None)
        done = tuple(self.rows[r.cell.id] for r in requests if r.cell.id in self.rows)
        self.tell(SweepFinished(done, asked=len(requests)))

    def _take(self, waiting: list[Request], fitting: Mapping[str, Sequence[Gpu]], gpu: Gpu) -> Request | None:
        """The next cell that fits the GPU; None when there is none, or when the sweep is to stop."""
        with self.lock:
            if self.stop.signal is not None:
                return None
            index = next((i for i, request in enumerate(waiting) if gpu in fitting[request.cell.id]), None)
            return None if index is None else waiting.pop(index)

    def one(self, request: Request, gpu: Gpu | None) -> None:
        """Take one cell to its row."""
        cell = request.cell
        plan = make_plan(cell, request.choices)
        unreadable = None
        try:
            where = self.where(cell, gpu)
        except Refusal as error:  # the GPU was there when the sweep began
            where, unreadable = self.where(cell, None), Verdict("refused", "load", str(error))
        with self.study.claim(cell.id, where.id, self.stop.wait) as claimed:
            if claimed:
                self.one_claimed(request, gpu, plan, where, unreadable)

    def one_claimed(
        self, request: Request, gpu: Gpu | None, plan: Plan, where: Environment, unreadable: Verdict | None
    ) -> None:
        cell = request.cell
        kept = self.kept(cell, where)
        if kept is not None and (kept.status != "refused" or plan.problems):
            self.finish(kept, kept=True)
            return
        folder = self.study.folder(cell.id, where.id)
        row.prepare(folder, cell, request.choices)
        refusal = _refusal(plan, self.others.get(cell.runtime.name)) or unreadable
        if refusal is not None:
            self.keep(request, where, refusal)
            return
        self.tell(CellStarted(cell.id, self.names[cell.id]))

        def on_stage(stage: Stage) -> None:
            self.tell(StageStarted(cell.id, stage))

        place, interpreter = gpu.uuid if gpu else None, self.others.get(cell.runtime.name)
        verdict = run_worker(cell, folder, self.launch, self.stop, place, on_stage, interpreter)
        (folder / "outcome.json").unlink(missing_ok=True)
        self.keep(request, where, verdict)

    def kept(self, cell: Cell, where: Environment) -> Result | None:
        """The row that the study keeps. One that cannot be read must not stop the sweep: it is told, and replaced."""
        try:
            return self.study.kept(cell.id, where.id)
        except UsageError as error:
            self.tell(RowUnreadable(self.names[cell.id], str(error)))
            return None

    def where(self, cell: Cell, gpu: Gpu | None) -> Environment:
        """The environment of a cell, asked for once: a GPU that dies during the sweep still has rows that say so.

        Raises Refusal when NVML cannot read the GPU.
        """
        device, runtime = cell.recipe.hardware.device, cell.runtime.name
        key = (device, gpu.uuid if gpu else None, runtime)
        if key not in self.places:
            self.places[key] = environment(device, gpu=key[1], git=self.git, interpreter=self.others.get(runtime))
        return self.places[key]

    def keep(self, request: Request, where: Environment, verdict: Verdict) -> None:
        """Write the row of a cell that was tried, or refused."""
        result = row.make(self.study.folder(request.cell.id, where.id), request.cell, request.choices, where, verdict)
        self.study.keep(result)
        self.finish(result)

    def finish(self, result: Result, *, kept: bool = False) -> None:
        self.rows[result.cell_id] = result
        self.tell(CellFinished(result, self.names[result.cell_id], kept=kept))

    def tell(self, event: Event) -> None:
        with self.lock:
            self.listener(event)


def _gpus(cell: Cell) -> Sequence[Gpu]:
    """The GPUs that can run the cell; none for the CPU, and none where the driver is broken, which _refusal tells."""
    if cell.recipe.hardware.device == "cpu":
        return ()
    try:
        return hardware.matching(cell.recipe.hardware)
    except Refusal:
        return ()


def _refusal(plan: Plan, there: Interpreter | None) -> Verdict | None:
    """Why a cell cannot run here, as far as it can be known without a worker.

    The stage tells what to make of it: ``plan`` is final; ``load`` is for want of a device or a package, and the cell
    is tried again the next time.

    Args:
        there: the interpreter that is to run it, where it is another one than this.
    """
    if plan.problems:
        return Verdict("refused", "plan", "\n".join(problem.text for problem in plan.problems))
    try:
        absent = hardware.check_declared(plan.cell.recipe.hardware)
    except Refusal as broken:
        absent = str(broken)
    if absent is not None:
        return Verdict("refused", "load", absent)
    steps = [step for _, step in plan.steps]
    asked = () if there is None else (*worker_requirements(), *steps_from_elsewhere(steps))
    lacking = packages.lacking([Requirements(packages=asked), *(step.requires() for step in steps)], there)
    return None if lacking is None else Verdict("refused", "load", lacking)
