"""How long the cells of a matrix take: what its rows took, and what the next ones will.

``times.json`` lies beside a study's ``cells/``: wall clock is no property of a row, which keeps only what it measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diffopt.errors import UsageError
from diffopt.machine.files import write_json
from diffopt.schema.record import Frozen

MARGIN = 1.2  # of every estimate: clocks, disks and compilers vary
ONCE_MORE = 0.95  # of the time that a cell was cut off after; no two calls have left exactly the same
AFTER_CUTS = 1.5  # a cell that was cut off twice takes longer than it was given; how much longer is a guess


class Time(Frozen):
    """What one cell took: ``seconds`` of wall clock, beside the guess of the list, ``prior``.

    Of a cell that was cut off (``interrupted``) ``seconds`` are those that it was given, and ``cuts`` counts how often.
    """

    model: str
    prior: float
    seconds: float
    status: str
    cuts: int = 0


class Times:
    """The times of a study by cell id, kept in its folder."""

    def __init__(self, study: Path) -> None:
        self._path = study / "times.json"
        self._times: dict[str, Time] = {}
        if self._path.exists():
            self._times = _read(self._path)

    def note(self, cell_id: str, time: Time) -> None:
        """Keep the time of a cell, instead of an earlier one; its cuts are counted here."""
        before = self._times.get(cell_id)
        cuts = 1 + (before.cuts if before else 0) if time.status == "interrupted" else 0
        self._times[cell_id] = time.model_copy(update={"cuts": cuts})
        write_json(self._path, {key: value.model_dump() for key, value in sorted(self._times.items())})

    def estimate(self, cell_id: str, model: str, prior: float) -> float:
        """Seconds that a cell will take, rather too many.

        The guess, corrected by the worst ratio of time to guess among the ``ok`` rows of the same model; without one,
        by that of all rows if it is above 1. A cell that was cut off left warm compile caches, so it is tried once
        more in the time that it had; after another cut it is expected to need half as much again.
        """
        finished = [time for time in self._times.values() if time.status == "ok"]
        same = [time.seconds / time.prior for time in finished if time.model == model]
        others = [1.0, *(time.seconds / time.prior for time in finished)]
        expected = prior * max(same or others) * MARGIN
        before = self._times.get(cell_id)
        if before is None:
            return expected
        if before.status == "ok":
            return before.seconds * MARGIN
        if before.status != "interrupted":
            return expected
        return before.seconds * ONCE_MORE if before.cuts == 1 else max(expected, before.seconds * AFTER_CUTS)


def _read(path: Path) -> dict[str, Time]:
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        return {key: Time.from_plain(value) for key, value in data.items()}
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        raise UsageError(
            f"{path} is not a file of times: {error}. Without it the guesses of the list count."
        ) from error
