"""The most valuable cells first, on a GPU machine without a network, in the minutes that there are.

``scripts/gpu_matrix --minutes N`` goes through a list of cells (gpu_matrix.yaml), at full size with random weights. It
starts no cell that it expects not to end in time, asks one that does not end to stop, and goes on where the study
stopped when it is called again. Rows, tables and the packed study are whole after every cell.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from diffopt import environment, hardware, show
from diffopt.cell import Cell
from diffopt.errors import DiffoptError, Interrupted, Refusal, UsageError
from diffopt.gpu_matrix_files import pack, write_tables
from diffopt.gpu_matrix_list import SHIPPED, Point, folder_name, ordered, points, read_matrix, rows_of
from diffopt.gpu_matrix_times import Time, Times
from diffopt.plan import make_plan
from diffopt.result import Status
from diffopt.runner import run_all
from diffopt.study import Study

RESULTS = Path("docs/results")  # relative to the working directory, which is the checkout's
RESERVE_S = 5.0  # kept at the end for the tables and the packed file
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Budget:
    """The time there is. ``end`` is when everything must be over, on the monotonic clock."""

    end: float

    def left(self, grace: float) -> float:
        """Seconds that a cell may still take, when it needs ``grace`` to stop."""
        return self.end - RESERVE_S - grace - time.monotonic()


def _estimate(point: Point, times: Times) -> float:
    if make_plan(point.cell, point.request.choices).problems:
        return 0.0  # a row without a process
    return times.estimate(point.cell.id, point.cell.recipe.model.name, point.entry.seconds)


def dry_run(todo: Sequence[Point], study: Path, minutes: float) -> None:
    """Print every cell with its state and estimate, and what of it fits into the minutes."""
    exists = (study / "cells").is_dir()
    rows = rows_of(Study(study), None) if exists else {}
    times, left = Times(study), minutes * 60 - RESERVE_S
    lines = []
    waiting = ordered(todo, rows)
    for point in [p for p in todo if p not in waiting] + waiting:
        seconds = _estimate(point, times)
        if point not in waiting:
            state = f"has its row: {rows[point.cell.id].status}"
        elif make_plan(point.cell, point.request.choices).problems:
            state = "refused by its plan"
        else:
            fits = seconds <= left - point.request.launch.grace
            state, left = ("runs", left - seconds) if fits else ("later", left)
        lines.append((point.cell.id, f"{seconds:.0f}", state, point.words))
    show.print_table(("cell", "seconds", "state", "words"), lines, right=frozenset({1}))


def run(todo: Sequence[Point], study: Study, budget: Budget, out: Path | None) -> list[Status]:
    """Run what fits, in its order; rows, tables and pack are whole after each cell.

    Returns:
        The statuses of the rows that were made now.

    Raises:
        Interrupted: a signal came that was not the budget's own.
    """
    env_id = _environment(todo[0].cell)
    times, made = Times(study.path), list[Status]()
    waiting, skipped = ordered(todo, rows_of(study, env_id)), []
    print(f"{len(todo)} cells, {len(todo) - len(waiting)} have their row; study {study.path}", flush=True)
    with _signals_raise():
        try:
            for point in waiting:
                estimate, left = _estimate(point, times), budget.left(point.request.launch.grace)
                if estimate > left:
                    skipped.append((point, estimate))
                    continue
                print(f"{point.words}: about {estimate:.0f} s, {left:.0f} s left", flush=True)
                status = _one(point, study, budget, times)
                made.append(status)
                _keep(study, out)
        finally:
            _keep(study, out)
    for point, estimate in skipped:
        minutes = (estimate + RESERVE_S + point.request.launch.grace) / 60
        print(f"left for another call, which needs {minutes:.1f} minutes or more for it: {point.words}")
    return made


def _keep(study: Study, out: Path | None) -> None:
    write_tables(study)
    if out is not None:
        pack(study, out)


def _one(point: Point, study: Study, budget: Budget, times: Times) -> Status:
    """Run one cell; when the time is up before it ends, it is asked to stop and its row is ``interrupted``."""
    begin = time.monotonic()
    up = threading.Event()

    def time_is_up() -> None:
        up.set()
        os.kill(os.getpid(), signal.SIGTERM)  # as anybody would end it; run_all keeps the row

    timer = threading.Timer(max(0.0, budget.left(point.request.launch.grace)), time_is_up)
    timer.daemon = True
    timer.start()
    status: Status = "interrupted"
    said = None
    try:
        (result,) = run_all([point.request], study, point.request.launch)
        status, said = result.status, result.reason
    except Interrupted:
        if not up.is_set():
            raise
    finally:
        timer.cancel()
        model, seconds = point.cell.recipe.model.name, time.monotonic() - begin
        times.note(
            point.cell.id, Time(model=model, prior=point.entry.seconds, seconds=round(seconds, 1), status=status)
        )
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


def _environment(cell: Cell) -> str:
    """The id of the environment that the cells will run in."""
    gpus = () if cell.recipe.hardware.device == "cpu" else hardware.matching(cell.recipe.hardware)
    return environment.environment(cell.recipe.hardware.device, gpu=gpus[0].uuid if gpus else None).id


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_matrix", description="Measure the most valuable cells on this machine's GPU, as time allows."
    )
    parser.add_argument("--minutes", type=float, required=True, help="when to be over, all included")
    parser.add_argument("--study", type=Path, help="the study's folder; docs/results/GPU without")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the study as DIR/GPU.tar.gz, without pictures")
    parser.add_argument("--cells", type=Path, metavar="FILE", default=SHIPPED, help="another list of cells (YAML)")
    parser.add_argument("--dry-run", action="store_true", help="print what would run; hardware=h100 needs no GPU")
    parser.add_argument("words", nargs="*", metavar="GROUP=OPTION|KEY=VALUE", help="for every cell; they win")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: it ended by itself and no row failed; 1: some did, or there is no GPU; 2: wrong usage."""
    began = time.monotonic()
    args = _parser().parse_intermixed_args(argv)
    try:
        todo = points(read_matrix(args.cells), args.words)
        device = todo[0].cell.recipe.hardware
        if device.device == "cpu" and "hardware=cpu" not in args.words:
            raise Refusal("this machine has no NVIDIA GPU; hardware=h100 --dry-run plans for one")
        path = args.study or RESULTS / folder_name(device.name)
        if args.dry_run:
            dry_run(todo, path, args.minutes)
            return 0
        if (absent := hardware.check_declared(device)) is not None:
            raise Refusal(f"{absent}; --dry-run needs none")
        made = run(todo, Study.create(path), Budget(began + 60 * args.minutes), args.out)
        return 0 if set(made) <= {"ok", "refused", "oom", "interrupted"} else 1
    except Interrupted as stop:
        print(f"gpu_matrix: {stop}", file=sys.stderr)
        return 128 + stop.signal
    except DiffoptError as error:
        print(f"gpu_matrix: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    sys.exit(main())
