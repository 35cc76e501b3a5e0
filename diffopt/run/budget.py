"""The wall clock that a sweep may take (``launch.minutes``): what may begin, what must end when, what comes first.

What a cell will take is said by the rows of its study that were made on the same device: as long as the longest ``ok``
row of the same model with the same way to compile, and longer than it took itself when it did not end well. A cell of
which they say nothing begins whenever time is left.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from diffopt.machine.environment import Environment
from diffopt.recipe.cell import Cell
from diffopt.recipe.launch import Launch
from diffopt.results.result import Result
from diffopt.results.study import Study
from diffopt.run import row

RESERVE_S = 5.0  # kept at the end for the last rows and the table
MARGIN = 1.2  # of what rows took: clocks, disks and compilers vary


class Budget:
    """The time of one sweep, which begins where this is made. Threads may share one."""

    def __init__(self, launch: Launch) -> None:
        self._minutes, self._kept_back = launch.minutes, launch.grace + RESERVE_S
        minutes = math.inf if launch.minutes is None else launch.minutes
        self.end = time.monotonic() + 60 * minutes - self._kept_back  # of what runs then
        self._rank: dict[str, int] = {}  # of a cell: what its rows are worth
        self._lock = threading.Lock()
        self._longest: dict[tuple[str | None, str], float] = {}  # seconds, by device and a cell's id or kind

    def learn(self, study: Study) -> None:
        """Take what the rows of a study say. One that cannot be read says nothing, and is told when its cell comes."""
        if self._minutes is not None:
            for result in study.results(lambda unreadable: None):
                self.note(result)

    def note(self, result: Result) -> None:
        """Take what a row says: one of the study, or one that was made now."""
        worth = 2 if result.final else 0 if result.status == "interrupted" else 1
        self._rank[result.cell_id] = max(worth, self._rank.get(result.cell_id, 0))
        if result.seconds is not None:
            device, seconds = result.environment.device.name, _longest_round(result)
            self._note(device, result.cell_id, seconds)
            if result.status == "ok":
                self._note(device, _kind(result.cell), seconds)

    def note_round(self, cell: Cell, where: Environment, seconds: float) -> None:
        """Take how long a round took of a cell that has no row yet."""
        self._note(where.device.name, _kind(row.cell_for_row(cell)), seconds)

    def _note(self, device: str | None, what: str, seconds: float) -> None:
        with self._lock:
            self._longest[device, what] = max(seconds, self._longest.get((device, what), 0.0))

    def in_order(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells in the order in which their rows are worth waiting for, the first asked first among equals.

        First what has no row or was cut off, then what failed, which may fail again. What has its row comes last: it
        takes no time where it is kept, and is worth little where the row is from another environment.
        """
        return sorted(cells, key=lambda cell: self._rank.get(cell.id, 0))

    def shortage(self, cell: Cell, where: Environment) -> str | None:
        """Why the next round of a cell cannot begin for want of time; None where it can."""
        if self._minutes is None:
            return None
        left, expected = self.end - time.monotonic(), self._expected(cell, where)
        if left > expected:
            return None
        over = f"not begun, launch.minutes={self._minutes:g}: "
        if not expected:
            return f"{over}no time was left"
        alone = math.ceil((expected + self._kept_back) / 6) / 10
        return (
            f"{over}{max(left, 0):.0f} s were left, and by the rows of this study it may take {expected:.0f} s; "
            f"alone it needs launch.minutes={alone:g}"
        )

    def _expected(self, cell: Cell, where: Environment) -> float:
        """Seconds that a round of a cell will take, rather too many; 0 where no row says anything."""
        kind = _kind(row.cell_for_row(cell))
        return MARGIN * max(self._longest.get((where.device.name, what), 0.0) for what in (cell.id, kind))


def _longest_round(known: Result) -> float:
    """Of a row's rounds, the one that did not end well among them."""
    ended = [each.seconds for each in known.rounds]
    return max([*ended, (known.seconds or 0.0) - sum(ended)])


def _kind(cell: Mapping[str, Any]) -> str:
    """What of a row's cell says most about its wall clock, as a text."""
    return json.dumps([cell["recipe"]["model"], cell["recipe"].get("compile")], sort_keys=True)
