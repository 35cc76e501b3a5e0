"""Kills a sweep again and again, goes on with it, and counts what is lost: ``scripts/torture_kills``. Linux alone.

A third of the kills strikes the command, a third the command and the worker at once with the command's process group,
and a third the worker; when, is drawn by a seeded generator: while it composes, calls without weights, starts a worker,
in each phase, and as a row is written. Ends with 1 where a cell was lost or measured twice, a row cannot be read, a
process lived for more than two seconds longer, or a file was left.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from diffopt.machine.process import kill_process_group
from scripts.maintain.tortured_study import Sweep, TorturedStudy

Kind = Literal["parent", "group", "worker"]
KINDS: tuple[Kind, ...] = ("parent", "group", "worker")
MOMENTS = ("compose", "call", "start", "load", "optimize", "compile", "warmup", "measure", "write")
LATER_S = {"compose": 1.2, "write": 0.03}  # at most, after the moment has begun
ORPHAN_S = 2.0
RESERVE = 4  # cells that are left for after the last kill


@dataclass
class Torture:
    """The kills that a study survived."""

    study: TorturedStudy
    kills: int
    chance: random.Random
    until: float  # on the clock of time.monotonic: then the rest is not tried
    struck: Counter[tuple[str, str]] = field(default_factory=Counter)  # by kind and moment
    slowest_s: float = 0.0  # until the last process was gone

    @property
    def late(self) -> bool:
        return time.monotonic() > self.until

    def torture(self) -> None:
        """All kills, and then to the end."""
        kinds = [KINDS[number % len(KINDS)] for number in range(self.kills)]
        self.chance.shuffle(kinds)
        sweep = self.study.start()
        for number, kind in enumerate(kinds):
            ok = len(self.study.ok())
            pace = 2 * max(self.study.cells - RESERVE - ok, 0) // (self.kills - number)
            rows = ok + self.chance.randint(0, pace)
            while not self.late and not self._strike(kind, rows, sweep):
                sweep = self._running(sweep)
            sweep = self._running(sweep)
            print(f"{number + 1}/{self.kills} {kind}: {ok} rows", flush=True)
        for _ in range(3):  # a worker may have been killed in the run that goes on
            if len(self.study.ok()) < self.study.cells and not self.late:
                self._wait(sweep := self._running(sweep), lambda: False)
                self.study.hear(sweep)
        if not self.late:
            self.study.look_at_end()
            return
        sweep.process.kill()
        self.study.hear(sweep)
        self.study.look("the end")
        self.study.faults.append(f"out of time after {self.struck.total()} kills")

    def _running(self, sweep: Sweep) -> Sweep:
        if sweep.process.poll() is None:
            return sweep
        self.study.hear(sweep)
        return self.study.start()

    def _strike(self, kind: Kind, rows: int, sweep: Sweep) -> bool:
        """Wait for so many rows and a moment, and kill; False where there was nothing to kill any more."""
        moment = self.chance.choice(MOMENTS)
        if sweep.lines:  # what comes before the first cell is over
            moment = {"compose": "start", "call": "write"}.get(moment, moment)
        elif moment == "compose" and kind == "worker":
            moment = "start"
        elif moment == "call":
            self.study.forget_calls()
        if not self._wait(sweep, self._sign_of(moment, sweep, rows)):
            return False
        time.sleep(self.chance.uniform(0, LATER_S.get(moment, 0.03 if self.study.stand_in else 1.0)))
        struck = sweep.process.poll() is None and self._kill(kind, sweep)
        self.struck[kind, moment] += struck
        return struck

    def _sign_of(self, moment: str, sweep: Sweep, rows: int) -> Callable[[], bool]:
        seen = len(sweep.lines)
        words = "load" if moment == "start" else moment
        if moment == "compose":
            return lambda: True
        if moment == "call":
            return lambda: any(line.startswith("calling once") for line in sweep.lines)
        if moment == "write":
            files = self.study.place / "tmp"
            return lambda: sweep.finished >= rows and any(files.glob("diffopt-cell-*/outcome.json"))
        return lambda: sweep.finished >= rows and any(line.endswith(f"   {words}") for line in sweep.lines[seen:])

    def _wait(self, sweep: Sweep, sign: Callable[[], bool]) -> bool:
        while not sign():
            if sweep.process.poll() is not None or self.late:
                return False
            time.sleep(0.002)
        return True

    def _kill(self, kind: Kind, sweep: Sweep) -> bool:
        """Kill, and see that all of it goes; False where there is no worker to kill."""
        if kind == "worker":
            return self._kill_worker(sweep)
        marked, parent = self.study.marked, sweep.process.pid
        leaders = [parent, *(marked.children(parent) if kind == "group" else [])]
        started = marked.started_by(parent)  # also what has another environment
        for leader in self.chance.sample(leaders, len(leaders)):  # as by pkill, which cannot name what a worker started
            marked.kill(leader)
        if kind == "group":
            kill_process_group(parent, signal.SIGKILL)
        sweep.process.wait()
        self._see_them_go(kind, lambda: {**marked.processes(), **marked.living(started)})
        self.study.hear(sweep)
        self.study.look(f"a kill of the {kind}")
        return True

    def _kill_worker(self, sweep: Sweep) -> bool:
        marked = self.study.marked
        workers = marked.children(sweep.process.pid)
        if not workers:
            return False
        command, group = marked.command(workers[0]), marked.group(workers[0])
        marked.kill(workers[0])
        self._see_them_go("worker", lambda: marked.of_group(group))
        if found := re.search(r"\S+/cells/\w+/\w+", command):  # else it was a call without weights
            self._look_at_row_of_killed(self.study.place / found[0])
        return True

    def _see_them_go(self, kind: Kind, living: Callable[[], dict[int, str]]) -> None:
        began = time.monotonic()
        while (left := living()) and time.monotonic() < began + ORPHAN_S:
            time.sleep(0.01)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        for pid, command in left.items():
            self.study.faults.append(f"orphan after a kill of the {kind}: {command}")
            self.study.marked.kill(pid)

    def _look_at_row_of_killed(self, folder: Path) -> None:
        """A cell whose worker was killed has a row that says so, unless that one had said all."""
        until = time.monotonic() + 120
        while any((self.study.place / "tmp").glob("diffopt-cell-*/plan.json")) and time.monotonic() < until:
            time.sleep(0.01)
        until = time.monotonic() + 10
        while not (folder / "result.json").exists() and time.monotonic() < until:
            if (folder / "rounds.json").exists():  # another round comes later
                return
            time.sleep(0.01)
        row = dict(self.study.results()).get(folder / "result.json", {"status": "missing", "reason": None})
        if row["status"] != "ok" and (row["status"], "SIGKILL" in str(row["reason"])) != ("crashed", True):
            self.study.faults.append(f"the row of a killed worker is {row['status']}: {row['reason']}")


def torture(place: Path, cells: int, kills: int, *, odd: int, stand_in: bool, seed: int, minutes: float) -> Torture:
    """Kill a new study in a folder so often."""
    study = TorturedStudy(place, cells, odd, stand_in)
    it = Torture(study, kills, random.Random(seed), time.monotonic() + 60 * minutes)
    it.torture()
    return it


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="scripts/torture_kills", description=__doc__)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600.0, help="then the rest is not tried")
    parser.add_argument("--odd", type=int, help="of so many cells one compiles, one times starts, one has two rounds")
    parser.add_argument("--stand-in", action="store_true", help="workers that import no torch")
    options = parser.parse_args(argv)
    odd = options.odd or (8 if options.stand_in else 50)
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        it = torture(
            Path(folder),
            options.cells,
            options.kills,
            odd=odd,
            stand_in=options.stand_in,
            seed=options.seed,
            minutes=options.minutes,
        )
    for kind in KINDS:
        moments = {moment: count for (of, moment), count in sorted(it.struck.items()) if of == kind and count}
        print(f"{kind:7} {sum(moments.values()):3} kills: {moments}")
    print(f"{len(it.study.rows)} of {it.study.cells} cells ok in {it.study.runs} runs")
    print(f"the last process was gone after {it.slowest_s:.2f} s")
    print("\n".join(it.study.faults) or "0 lost, 0 twice, 0 unreadable, 0 orphans, 0 files left")
    sys.exit(1 if it.study.faults else 0)


if __name__ == "__main__":
    main()
