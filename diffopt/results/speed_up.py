"""How many times as fast as its reference each row of a study is, and why one has no such figure. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diffopt.recipe.labels import cell_label_line, cell_labels
from diffopt.results.reference import reference_row_of
from diffopt.results.result import Result
from diffopt.results.spread import WITHIN, is_within_spread
from diffopt.schema.reference import AUTO, Reference

IS_REFERENCE = "reference"
NOTE_ON_SPREAD = f"{WITHIN}: nearer to 1 than the latency of the row or of its reference is spread, so it may be none"
MOST = 3  # references that are told by name


@dataclass(frozen=True)
class SpeedUps:
    """Of the rows of a table, in their order."""

    # such as "1.52x", "~1.02x", "reference" for a row that others are compared with, "" where there is none
    words: tuple[str, ...]
    notes: tuple[str, ...]  # what they are over, and why some rows have none


def speed_ups(results: Sequence[Result], reference: Reference = AUTO) -> SpeedUps:
    """Each row's latency beside that of its reference, which ``reference`` names."""
    others = [reference_row_of(row, results, reference) if row.metrics.latency_s else None for row in results]
    pairs = list(zip(results, others, strict=True))
    taken = [row for row in results if any(other is row for each, other in pairs if each is not row)]
    words = tuple(_words(row, other, any(row is each for each in taken)) for row, other in pairs)
    without = [row for row, other in pairs if row.metrics.latency_s and other is None]
    shaky = [NOTE_ON_SPREAD] if any(word.startswith(WITHIN) for word in words) else []
    return SpeedUps(words, (*_over(results, taken, reference), *shaky, *_missing(results, without, reference)))


def _words(row: Result, other: Result | None, taken: bool) -> str:
    if other is None or row.metrics.latency_s is None or other.metrics.latency_s is None:
        return ""
    if other is row:
        return IS_REFERENCE if taken else ""
    mine, its = row.metrics.latency_s, other.metrics.latency_s
    ratio = its.median / mine.median
    return f"{WITHIN if is_within_spread(ratio, mine, its) else ''}{ratio:.2f}x"


def _over(results: Sequence[Result], taken: Sequence[Result], reference: Reference) -> Iterator[str]:
    if not taken:
        return
    labels = cell_labels([result.point for result in results])
    names = {id(row): cell_label_line(words) for row, words in zip(results, labels, strict=True)}
    told = [f"{row.cell_id} ({names[id(row)]})" for row in taken[:MOST]]
    yield f"speed-up: over {', '.join(told)}{' and others' if len(taken) > MOST else ''} (reference={reference})"


def _missing(results: Sequence[Result], without: Sequence[Result], reference: Reference) -> Iterator[str]:
    if not without or len(results) == 1:
        return
    rows = f"{len(without)} row{'s' * (len(without) > 1)}"
    if not any(reference.may_be(row.choices, row.cell_id) for row in results):
        why = f"there is no row of reference={reference}"
    else:
        kind = "" if reference.kind in ("auto", "first") else f" of reference={reference}"
        why = f"there is no valid row{kind} with the same model, workload and hardware that was measured alike"
    yield f"no speed-up for {rows}: {why}"
