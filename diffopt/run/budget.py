"""The wall clock that a sweep may take (``launch.minutes``): what may begin, what must end when, what comes first.

What a cell will take is said by the rows of its study that were made on the same device: as long as the longest ``ok``
row of the same model with the same way to compile, and longer than it took itself when it did not end well. A cell of
which they say nothing begins whenever time is left.
"""

from __future__ import annotations

import math
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
        self._rows: list[Result] = []
        self._rounds: list[tuple[str | None, tuple[Any, ...], float]] = []  # device, kind and seconds

    def learn(self, study: Study) -> None:
        """Take what the rows of a study say. One that cannot be read says nothing, and is told when its cell comes."""
        if self._minutes is not None:
            self._rows += study.results(lambda unreadable: None)

    def note(self, result: Result) -> None:
        """Take what a row says that was made now."""
        self._rows.append(result)

    def note_round(self, cell: Cell, where: Environment, seconds: float) -> None:
        """Take how long a round took of a cell that has no row yet."""
        self._rounds.append((where.device.name, _kind(row.cell_for_row(cell)), seconds))

    def in_order(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells in the order in which their rows are worth waiting for, the first asked first among equals.

        First what has no row or was cut off, then what failed, which may fail again. What has its row comes last: it
        takes no time where it is kept, and is worth little where the row is from another environment.
        """
        rank: dict[str, int] = {}
        for known in self._rows:
            worth = 2 if known.final else 0 if known.status == "interrupted" else 1
            rank[known.cell_id] = max(worth, rank.get(known.cell_id, 0))
        return sorted(cells, key=lambda cell: rank.get(cell.id, 0))

    def shortage(self, cell: Cell, where: Environment) -> str | None:
        """Why the next round of a cell cannot begin for want of time; None where it can."""
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
        said = [seconds for name, like, seconds in self._rounds if (name, like) == (where.device.name, kind)]
        said += [
            _longest_round(known)
            for known in self._rows
            if known.seconds is not None
            and known.environment.device.name == where.device.name
            and (known.cell_id == cell.id or (known.status == "ok" and _kind(known.cell) == kind))
        ]
        return MARGIN * max(said, default=0.0)


def _longest_round(known: Result) -> float:
    """Of a row's rounds, the one that did not end well among them."""
    ended = [each.seconds for each in known.rounds]
    return max([*ended, (known.seconds or 0.0) - sum(ended)])


def _kind(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of a row's cell says most about its wall clock."""
    return cell["recipe"]["model"], cell["recipe"]["compile"]
