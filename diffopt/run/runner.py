"""Takes single cells to their rows: one worker process each, a row for whatever becomes of it. Never imports torch."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from diffopt.errors import Refusal, UsageError
from diffopt.machine.environment import Environment, detect_environment
from diffopt.machine.git import Git, git_state
from diffopt.machine.interpreter import Interpreter
from diffopt.machine.nvml import Gpu
from diffopt.recipe.cell import Cell
from diffopt.recipe.launch import Launch
from diffopt.recipe.planned import Plan
from diffopt.results.drawing import AskedComparisons
from diffopt.results.result import Phase, Result
from diffopt.results.rounds import EndedRound, read_ended_rounds
from diffopt.results.row_files import RowStays
from diffopt.results.study import Study
from diffopt.run import row
from diffopt.run.budget import Budget
from diffopt.run.drawings import Drawings
from diffopt.run.events import (
    CellFinished,
    CellStarted,
    Event,
    Listener,
    NotBegun,
    PhaseStarted,
    RoundFinished,
    RowUnreadable,
)
from diffopt.run.not_kept import RowsNotKept
from diffopt.run.process import AGAIN, Stop, Verdict
from diffopt.run.refused import is_refused_again, refusal_of_cell
from diffopt.run.starts import run_cell_workers

Read = TypeVar("Read")


@dataclass
class Runner:
    """What the cells of a sweep have in common, and the way of each to its row. Threads may share one."""

    study: Study
    launch: Launch
    listener: Listener
    stop: Stop
    budget: Budget
    plans: Mapping[str, Plan]  # of the cells, by id
    names: Mapping[str, str]  # what the progress calls each cell, by id
    others: Mapping[str, Interpreter]  # by the runtime's name; the Python that runs this is not among them
    anew: bool = False  # measure also what the study has a final row of
    round: int = 1  # which is measured now: of all cells the first, then of all the second, …
    not_kept: RowsNotKept = field(init=False)
    _git: Git | None = field(default_factory=git_state)
    _drawings: Drawings = field(init=False)
    _places: dict[tuple[str, str | None, str], Environment] = field(default_factory=dict)
    _gpus: dict[str, str] = field(default_factory=dict)  # which had the cell of that id
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.not_kept = RowsNotKept(self.study)
        self._drawings = Drawings(self.study, self.launch, self.stop, self.others, self.tell)

    @property
    def stopped(self) -> bool:
        """Whether the sweep is to end: no cell begins any more."""
        return self.stop.signal is not None

    def take(self, cell: Cell, gpu: Gpu | None) -> Result | None:
        """Take one cell to its row on this machine, or to the end of this round.

        None where other rounds of it are to come, and where the sweep was to end before it could begin. Whatever lies
        in the study, and whatever becomes of it, concerns the cell alone: its row is ``error`` then, and not kept.

        Args:
            gpu: where it runs; None: on the CPU, or nowhere, for want of a device.
        """
        plan, unreadable = self.plans[cell.id], None
        if gpu is not None:
            self._gpus[cell.id] = gpu.uuid
        try:
            where = self._where(cell, gpu)
        except Refusal as error:  # the GPU was there when the sweep began
            where, unreadable = self._where(cell, None), Verdict("refused", "load", str(error))
        earlier, stands = None, False
        try:
            # no claim yet: the study may be one that nobody may write, which has all rows
            earlier = self._earlier(cell, where, silent=True)
            stands = earlier is not None and self._stands(plan, earlier)
            if earlier is not None and stands and not row.leftovers_beside_row(self.study.folder(cell.id, where.id)):
                return self._finish_earlier(earlier, cell)
            with self.study.claim(cell.id, where.id, self.stop.wait) as claimed:
                if claimed:
                    return self._take_claimed(plan, gpu, where, unreadable)
        except (OSError, UsageError, Refusal) as error:
            there = self.others.get(cell.runtime.name)
            if earlier is not None and (stands or is_refused_again(plan, there, earlier)):
                return self._finish_earlier(earlier, cell)
            self._bring_row_back(cell.id, where.id)
            verdict = Verdict("error", "plan", f"not measured: {self.not_kept.note(cell.id, error)}")
            return self._finish(row.row_of_ended_run(None, cell, where, verdict))
        if self.stopped:
            return None
        reason = f"launch.minutes={self.launch.minutes:g} were over while another process had it; {AGAIN}"
        verdict = Verdict("interrupted", "plan", reason)
        return self._finish(row.row_of_ended_run(None, cell, where, verdict))  # the row is theirs

    def of_earlier_round(self, cell: Cell, gpus: Sequence[Gpu]) -> Sequence[Gpu]:
        """Of these GPUs the one that had an earlier round of a cell; all where none had."""
        return [gpu for gpu in gpus if gpu.uuid == self._gpus.get(cell.id)] or gpus

    def _take_claimed(
        self, plan: Plan, gpu: Gpu | None, where: Environment, unreadable: Verdict | None
    ) -> Result | None:
        cell = plan.cell
        if self.round == 1:  # a process that measured anew was killed
            row.bring_row_back(self.study.folder(cell.id, where.id))
        earlier = self._earlier(cell, where)
        if earlier is not None and self._stands(plan, earlier):
            row.tidy_folder_of_final_row(self.study.folder(cell.id, where.id))
            return self._finish_earlier(earlier, cell)
        ended = self._ended_rounds(cell, where, earlier)
        if len(ended) >= self.round:
            self._finish_round(cell, where, ended[: self.round], kept=True)
            return None
        no_run = refusal_of_cell(plan, self.others.get(cell.runtime.name)) or unreadable
        if no_run is None and (shortage := self.budget.shortage(cell, where)) is not None:
            if earlier is not None:
                self.tell(NotBegun(self.names[cell.id], shortage))
                return self._finish_earlier(earlier, cell)
            no_run = Verdict("interrupted", "plan", shortage)
        if no_run is not None:
            row.prepare_folder_for_run(self.study.folder(cell.id, where.id), cell, ended)
            return self._keep(cell, where, no_run, ended)
        return self._measure(plan, gpu, where, ended)

    def _measure(self, plan: Plan, gpu: Gpu | None, where: Environment, ended: tuple[EndedRound, ...]) -> Result | None:
        """Run this round of a cell, and those before it that this environment has not: a launcher may have several."""
        cell = plan.cell
        while len(ended) < self.round:
            verdict, seconds = self._run(plan, gpu, where, ended)
            if verdict.outcome is None or verdict.status != "ok" or len(ended) + 1 == cell.measure.rounds:
                return self._keep(cell, where, verdict, ended, seconds)
            folder = self.study.folder(cell.id, where.id)
            longer = (*ended, EndedRound(outcome=verdict.outcome, seconds=seconds))
            try:
                row.keep_round(folder, longer)
            except OSError as error:
                return self._finish_unkept(row.row_of_ended_run(folder, cell, where, verdict, seconds, ended), error)
            ended = longer
            self._finish_round(cell, where, ended)
        return None

    def _run(
        self, plan: Plan, gpu: Gpu | None, where: Environment, ended: Sequence[EndedRound]
    ) -> tuple[Verdict, float]:
        """The processes of the next round: how they ended, and how many seconds they took."""
        cell, folder = plan.cell, self.study.folder(plan.cell.id, where.id)
        asked: AskedComparisons | None = None
        if cell.quality.pictures and len(ended) + 1 == cell.measure.rounds:
            found = self._drawings.comparisons(cell, where, gpu.uuid if gpu else None)
            if isinstance(found, Verdict):
                return found, 0.0
            asked = found
        if self.anew and not ended:
            row.set_row_aside(folder)
        row.prepare_folder_for_run(folder, cell, ended)
        self.tell(CellStarted(cell.id, self.names[cell.id], len(ended) + 1, cell.measure.rounds))

        def on_phase(phase: Phase) -> None:
            self.tell(PhaseStarted(cell.id, phase))

        place, interpreter = gpu.uuid if gpu else None, self.others.get(cell.runtime.name)
        begin = time.monotonic()
        verdict = run_cell_workers(plan, folder, self.launch, self.stop, place, on_phase, interpreter, asked)
        return verdict, round(time.monotonic() - begin, 2)

    def _ended_rounds(self, cell: Cell, where: Environment, earlier: Result | None) -> tuple[EndedRound, ...]:
        """The rounds that are not run again: those of a cell that was cut off, with a row that says so or without."""
        if (self.anew and self.round == 1) or (earlier is not None and earlier.status != "interrupted"):
            return ()
        folder = self.study.folder(cell.id, where.id)
        return self._readable(cell, lambda: read_ended_rounds(folder, cell.measure.rounds)) or ()

    def _stands(self, plan: Plan, found: Result) -> bool:
        """Whether the cell need not run, since it has this row."""
        again = self.anew and self.round == 1
        lacking = found.status == "ok" and plan.cell.quality.pictures and not (found.quality and found.quality.settled)
        return found.final and not again and not lacking and (found.status != "refused" or bool(plan.problems))

    def _earlier(self, cell: Cell, where: Environment, *, silent: bool = False) -> Result | None:
        """The row that the study has, however it ended."""
        return self._readable(cell, lambda: self.study.row(cell.id, where.id), silent=silent)

    def _readable(self, cell: Cell, read: Callable[[], Read], *, silent: bool = False) -> Read | None:
        """What is read of a cell; what is spoiled is told, for it is replaced. Raises RowStays for what must not be."""
        try:
            return read()
        except RowStays:
            raise
        except UsageError as error:
            if not silent:
                self.tell(RowUnreadable(self.names[cell.id], str(error)))
            return None

    def _where(self, cell: Cell, gpu: Gpu | None) -> Environment:
        """The environment of a cell, asked for once: a GPU that dies during the sweep still has rows that say so.

        Raises Refusal when NVML cannot read the GPU.
        """
        device, runtime = cell.recipe.hardware.device, cell.runtime.name
        key = (device, gpu.uuid if gpu else None, runtime)
        if key not in self._places:
            self._places[key] = detect_environment(
                device, gpu=key[1], git=self._git, interpreter=self.others.get(runtime)
            )
        return self._places[key]

    def _keep(
        self,
        cell: Cell,
        where: Environment,
        verdict: Verdict,
        ended: Sequence[EndedRound] = (),
        seconds: float | None = None,
    ) -> Result:
        """Write the row of a cell that was tried, or refused. Its rounds are in it, but for one that was cut off."""
        folder = self.study.folder(cell.id, where.id)
        result = row.row_of_ended_run(folder, cell, where, verdict, seconds, ended)
        self.budget.note(result)
        try:
            if result.status == "interrupted" and row.bring_row_back(folder):
                return self._finish(result)
            folder.stat()  # with its folder the log and the pictures are gone: a row that names them would be none
            self.study.keep(result)
            if result.status != "interrupted":
                row.tidy_folder_of_final_row(folder)
        except (OSError, UsageError) as error:
            return self._finish_unkept(result, error)
        return self._finish(result)

    def _finish_unkept(self, result: Result, error: OSError | UsageError) -> Result:
        """End a cell that was tried: whoever asked has its row with the figures, though the study has not."""
        self._bring_row_back(result.cell_id, result.env_id)
        return self._finish(row.row_that_is_not_kept(result, self.not_kept.note(result.cell_id, error)))

    def _bring_row_back(self, cell_id: str, env_id: str) -> None:
        """Of a cell that was measured anew in vain; a study that takes no rows keeps it set aside."""
        with suppress(OSError):
            row.bring_row_back(self.study.folder(cell_id, env_id))

    def _finish_round(self, cell: Cell, where: Environment, ended: Sequence[EndedRound], *, kept: bool = False) -> None:
        last = ended[-1]
        self.budget.note_round(cell, where, last.seconds)
        median = statistics.median(sample.latency for sample in last.outcome.samples)
        name, rounds = self.names[cell.id], cell.measure.rounds
        self.tell(RoundFinished(cell.id, name, len(ended), rounds, median, kept))

    def _finish_earlier(self, earlier: Result, cell: Cell) -> Result:
        """End a cell whose row stays, with what is accepted of its pictures now, which its id does not say."""
        asked = cell.quality.model_dump(mode="json")
        return self._finish(earlier.model_copy(update={"cell": {**earlier.cell, "quality": asked}}), kept=True)

    def _finish(self, result: Result, *, kept: bool = False) -> Result:
        self.tell(CellFinished(result, self.names[result.cell_id], kept=kept))
        return result

    def tell(self, event: Event) -> None:
        """Tell the listener, one event at a time."""
        with self._lock:
            self.listener(event)
