"""Runs the cells of a matrix in the minutes that there are, and keeps rows, tables and the packed study whole."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from diffopt.errors import Interrupted, UsageError
from diffopt.machine import environment, hardware
from diffopt.machine.compile_cache import private_caches
from diffopt.machine.environment import Environment
from diffopt.machine.files import write_text
from diffopt.recipe.cell import Cell
from diffopt.recipe.plan import make_plan
from diffopt.results.result import Status
from diffopt.results.study import Study
from diffopt.run.sweep import run_all
from scripts.maintain.gpu_matrix.cells import Point, standing
from scripts.maintain.gpu_matrix.files import Call, note_call, pack, write_tables
from scripts.maintain.gpu_matrix.times import Time, Times

START_S = 10.0  # from the command to its first cell, rather too many
RESERVE_S = 5.0  # kept at the end for the tables and the packed file
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Budget:
    """The time there is. ``end`` is when everything must be over, on the monotonic clock."""

    end: float

    def seconds_left(self, grace: float) -> float:
        """Seconds that a cell may still take, when it needs ``grace`` to stop."""
        return self.end - RESERVE_S - grace - time.monotonic()


def environment_of(cell: Cell) -> Environment | None:
    """The environment that the cells will run in; None where this machine has no such GPU."""
    device = cell.recipe.hardware.device
    if device == "cpu":
        return environment.environment(device)
    gpus = hardware.matching(cell.recipe.hardware)
    return environment.environment(device, gpu=gpus[0].uuid) if gpus else None


def estimated(point: Point, times: Times) -> float:
    """Seconds that a cell will take, rather too many."""
    if make_plan(point.cell).problems:
        return 0.0  # a row without a process
    return times.estimate(point.cell.id, point.cell.recipe.model.name, point.entry.seconds)


def run(todo: Sequence[Point], study: Study, budget: Budget, out: Path | None, command: str) -> list[Status]:
    """Run what fits, in its order; rows, tables and pack are whole after each cell.

    Args:
        out: where the packed study is kept; None: nowhere.
        command: what the tables say that made the rows.

    Returns:
        The statuses of the rows that were made now.

    Raises:
        Interrupted: a signal came that was not the budget's own.
        OSError: something cannot be written.
    """
    where, tell = environment_of(todo[0].cell), teller()
    assert where is not None, "the command has asked"
    times, made = Times(study.path), list[Status]()
    now, skipped = standing(todo, study.results(tell), where), []
    print(f"{len(todo)} cells, {len(now.done)} have their row; study {study.path}", flush=True)
    with _signals_raise(), _caches(study):
        _keep(study, out, tell)  # what cannot be written is to be known before the first cell
        try:
            for point in now.waiting:
                estimate, left = estimated(point, times), budget.seconds_left(point.request.launch.grace)
                if estimate > left:
                    skipped.append((point, estimate))
                    continue
                print(f"{point.words}: about {estimate:.0f} s, {left:.0f} s left", flush=True)
                note_call(study, Call(env_id=where.id, command=command))
                made.append(_one(point, study, budget, times))
                _keep(study, out, tell)
        except Interrupted:
            _keep(study, out, tell)
            raise
    if skipped:
        print(f"{len(skipped)} cells are left for other calls, with as many minutes or more:")
    for point, estimate in skipped:
        print(f"  {minutes_for(point, estimate)}  {point.words}")
    return made


def minutes_for(point: Point, estimate: float) -> str:
    """What ``--minutes`` must be for a cell alone, rounded up."""
    return f"{math.ceil((START_S + estimate + point.request.launch.grace + RESERVE_S) / 6) / 10:.1f}"


def _keep(study: Study, out: Path | None, tell: Callable[[UsageError], None]) -> None:
    write_tables(study, tell)
    if out is not None:
        pack(study, out, tell)


def teller() -> Callable[[UsageError], None]:
    """Tells once of each row that cannot be read, which counts as none."""
    told = set[str]()

    def tell(error: UsageError) -> None:
        if str(error) not in told:
            told.add(str(error))
            print(f"gpu_matrix: left out: {error}", file=sys.stderr, flush=True)

    return tell


@contextmanager
def _caches(study: Study) -> Iterator[None]:
    """Compile caches that lie with the study, so that a cell that was cut off starts warm in the next call.

    The variables that the user has set stay as they are.
    """
    folder = study.path / "compile-cache"
    folder.mkdir(exist_ok=True)
    write_text(folder / ".gitignore", "*\n")
    ours = {name: place for name, place in private_caches(folder.absolute()).items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def _one(point: Point, study: Study, budget: Budget, times: Times) -> Status:
    """Run one cell; when the time is up before it ends, it is asked to stop and its row is ``interrupted``."""
    begin = time.monotonic()
    up = threading.Event()

    def time_is_up() -> None:
        up.set()
        os.kill(os.getpid(), signal.SIGTERM)  # as anybody would end it; run_all keeps the row

    given = max(0.0, budget.seconds_left(point.request.launch.grace))
    timer = threading.Timer(given, time_is_up)
    timer.daemon = True
    timer.start()
    status: Status = "interrupted"
    said = None
    try:
        (result,) = run_all([point.cell], study, point.request.launch)
        status, said = result.status, result.reason
    except Interrupted:
        if not up.is_set():
            raise  # by somebody: that says nothing of how long the cell takes
    finally:
        timer.cancel()
    seconds = given if status == "interrupted" else time.monotonic() - begin
    model, prior = point.cell.recipe.model.name, point.entry.seconds
    times.note(point.cell.id, Time(model=model, prior=prior, seconds=round(seconds, 1), status=status))
    print(f"  {status} after {seconds:.0f} s{f': {said}' if said else ''}", flush=True)
    return status


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Between cells a signal raises Interrupted, as it does within them."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
