"""The rounds of a cell that have ended while others are still to come: a file in its folder until there is a row.

The samples of all rounds are one row's, and so are the medians, the spread and whether it is valid. What a process does
once (loading, its first call, the starts) a row has of its first round; its peaks of memory are the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from diffopt.errors import UsageError
from diffopt.machine.files import write_json
from diffopt.machine.reading import MIB, read_file
from diffopt.results.result import Metrics, Outcome, PeakMemory, PeakReserved, Round
from diffopt.results.row_files import REMEDY, STAYS, RowStays
from diffopt.schema.record import Frozen

ROUNDS = "rounds.json"
LONGEST = 256 * MIB  # of that file, which has all samples
ONCE = ("load_s", "first_call_s", "warmup_s", "compile_cache", "starts")  # metrics that are the first round's


class EndedRound(Frozen):
    """What the worker of one round said, and how long its processes took."""

    outcome: Outcome
    seconds: float

    def for_row(self) -> Round:
        metrics = self.outcome.metrics
        return Round(
            seconds=self.seconds,
            samples=len(self.outcome.samples),
            **{name: getattr(metrics, name) for name in Round.model_fields if name in Metrics.model_fields},
        )


class _EndedRounds(Frozen):
    rounds: tuple[EndedRound, ...]


def write_ended_rounds(folder: Path, ended: Sequence[EndedRound]) -> None:
    """Keep the rounds of a cell that has no row yet."""
    write_json(folder / ROUNDS, _EndedRounds(rounds=tuple(ended)).model_dump(mode="json"))


def read_ended_rounds(folder: Path, rounds: int) -> tuple[EndedRound, ...]:
    """The rounds in the folder of a cell of so many; none where it has no file of them.

    Raises:
        RowStays: it is no file, too large, or must not be read.
        UsageError: it is not one of rounds that ended well and have samples, or of all rounds, which would be a row.
    """
    path = folder / ROUNDS
    try:
        found = _EndedRounds.model_validate_json(read_file(path, str(path), LONGEST, follow=False)).rounds
    except FileNotFoundError:
        return ()
    except ValidationError as error:
        raise UsageError(f"{path} cannot be read as the rounds of a cell. {REMEDY}") from error
    except UsageError as error:
        raise RowStays(f"{error} {STAYS}") from error
    except OSError as error:
        raise RowStays(f"{path} cannot be read: {error.strerror}. {STAYS}") from error
    if len(found) >= rounds or not all(each.outcome.status == "ok" and each.outcome.samples for each in found):
        raise UsageError(f"{path} cannot be read as the rounds of a cell of {rounds}. {REMEDY}")
    return found


def outcome_of_rounds(outcomes: Sequence[Outcome]) -> Outcome:
    """What all rounds of a cell come to, which ended well: the last one's figures are of the samples of all."""
    first, last = outcomes[0], outcomes[-1]
    changed = {name: getattr(first.metrics, name) for name in ONCE}
    changed["peak_memory_bytes"] = PeakMemory(**_largest([outcome.metrics.peak_memory_bytes for outcome in outcomes]))
    changed["peak_reserved_bytes"] = PeakReserved(
        **_largest([outcome.metrics.peak_reserved_bytes for outcome in outcomes])
    )
    reasons = [f"round {number}: {each.reason}" for number, each in enumerate(outcomes[:-1], 1) if each.reason]
    return last.model_copy(
        update={
            "metrics": last.metrics.model_copy(update=changed),
            "valid": all(outcome.valid for outcome in outcomes),
            "reason": "; ".join([*reasons, *([last.reason] if last.reason else [])]) or None,
            "compile_cache": first.compile_cache,
            "compile_cache_sha256": first.compile_cache_sha256,
        }
    )


def _largest(peaks: Sequence[PeakMemory | PeakReserved]) -> dict[str, int | None]:
    known = {
        name: [value for peak in peaks if (value := getattr(peak, name)) is not None]
        for name in ("first_call", "steady")
    }
    return {name: max(values, default=None) for name, values in known.items()}
