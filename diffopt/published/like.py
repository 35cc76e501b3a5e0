"""A study in the layout of a published benchmark, with the published figures beside ours where they can be compared."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from diffopt.errors import UsageError
from diffopt.published import Figure
from diffopt.published.layout import BREAK, COMPILED, NOTHING, PLAIN, REFUSED, Column, Entry, number
from diffopt.published.places import Place, places
from diffopt.report import useful
from diffopt.result import Result

LONGEST_REASON = 400  # characters; `result.json` has all of it


@dataclass(frozen=True)
class Likeness:
    """A study's cells (``ours``), the published ones and the ratios (``beside``), the order of the columns of both, and
    why figures are missing."""

    ours: tuple[Entry, ...]
    beside: tuple[Entry, ...]
    columns: tuple[Column, ...]
    notes: tuple[str, ...]


def likeness(results: Sequence[Result], figures: Sequence[Figure]) -> Likeness:
    """The rows of a study as cells of the benchmark's tables.

    The published figure beside ours is of the newest torch of the page, and of the same GPU, batch size, model at its
    customary size, and compile or not; where there is none, nothing stands beside it. Rows of other pipelines are left
    out, which ``notes`` tell.

    Raises:
        UsageError: no row is of a pipeline that the benchmark has.
    """
    rows = places(useful(results), figures)
    if not rows:
        pipelines = ", ".join(dict.fromkeys(f"{figure.option} {figure.task}" for figure in figures))
        raise UsageError(f"No row of this study is of a pipeline that the benchmark has: {pipelines}.")
    ours = tuple(_entry(row) for row in rows)
    published, ratios = [], []
    for row, entry in zip(rows, ours, strict=True):
        if theirs := _theirs(row, figures):
            published.append(_their_entry(row, theirs))
            ratios.append(_ratio(entry, theirs))
    order = [(row.torch, row.mode) for row in sorted(rows, key=lambda row: row.column)]
    columns = [*order, *((f"published {_newest(figures)}", mode) for mode in (PLAIN, COMPILED))]
    columns += [(_over_published(torch), mode) for torch, mode in order]
    notes = (*_reasons(rows), *_left_out(results, figures))
    return Likeness(ours, (*published, *ratios), tuple(dict.fromkeys(columns)), notes)


def _entry(row: Place) -> Entry:
    """A row that is not valid shows its figures, which then count for nothing else."""
    result = row.result
    speeds = tuple(stage.iterations_per_second for stage in result.metrics.stages)
    counted = speeds if result.status == "ok" and result.valid else ()
    return Entry(row.gpu, row.batch_size, row.pipeline, row.torch, row.mode, _text(result, speeds), counted)


def _text(result: Result, speeds: Sequence[float]) -> str:
    if result.status == "refused":
        return REFUSED
    if result.status != "ok":
        return f"{'OOM' if result.status == 'oom' else result.status} at {result.stage}"
    text = BREAK.join(map(number, speeds)) or "no figure"
    return text if result.valid else f"{text} (not valid)"


def _newest(figures: Sequence[Figure]) -> str:
    return figures[-1].torch  # a page's columns go from the oldest to the newest


def _over_published(torch: str) -> str:
    return f"{torch} / published"


def _theirs(row: Place, figures: Sequence[Figure]) -> list[Figure]:
    """The published figures, one per stage, that a row can be compared with."""
    model, workload = row.result.cell["recipe"]["model"], row.result.cell["workload"]
    if model["name"] != row.like.option or any(workload[side] != model[side] for side in ("height", "width")):
        return []
    wanted = (row.hardware, row.batch_size, row.like.option, row.like.task, _newest(figures), row.compiled)
    return [f for f in figures if (f.hardware, f.batch_size, f.option, f.task, f.torch, f.compiled) == wanted]


def _their_entry(row: Place, theirs: Sequence[Figure]) -> Entry:
    """All figures as iterations per second, where the page has some as seconds per iteration."""
    speeds = _speeds(theirs)
    mode = COMPILED if row.compiled else PLAIN
    text = BREAK.join(map(number, speeds)) or theirs[0].text
    return Entry(row.gpu, row.batch_size, row.pipeline, f"published {theirs[0].torch}", mode, text, speeds)


def _speeds(figures: Sequence[Figure]) -> tuple[float, ...]:
    return tuple(figure.iterations_per_second for figure in figures if figure.iterations_per_second is not None)


def _ratio(ours: Entry, theirs: Sequence[Figure]) -> Entry:
    """Ours over theirs, of the stages that both have: for batches the page has a cascade's first stage only."""
    ratios = tuple(mine / other for mine, other in zip(ours.speeds, _speeds(theirs), strict=False))
    text = BREAK.join(f"{ratio:.2f}x" for ratio in ratios) or NOTHING
    return Entry(ours.gpu, ours.batch_size, ours.pipeline, _over_published(ours.torch), ours.mode, text, ratios)


def _reasons(rows: Sequence[Place]) -> list[str]:
    """One line per reason, with the cells that it holds for."""
    cells: dict[str, list[str]] = {}
    for row in rows:
        result = row.result
        if result.status == "ok" and result.valid:
            continue
        state = "not valid" if result.status == "ok" else f"{result.status} at {result.stage}"
        reason = textwrap.shorten(result.reason or "no reason is on record", LONGEST_REASON, placeholder=" …")
        where = f"{row.pipeline}, batch {row.batch_size}, {row.torch} - {row.mode}, {row.gpu}"
        cells.setdefault(f"{state}: {reason}", []).append(where)
    return [f"{reason} ({'; '.join(where)})" for reason, where in cells.items()]


def _left_out(results: Sequence[Result], figures: Sequence[Figure]) -> list[str]:
    others = [result for result in results if not places([result], figures)]
    what = dict.fromkeys(f"{r.cell['recipe']['model']['name']} {r.cell['workload']['task']}" for r in others)
    return [f"left out, since the benchmark has no such pipeline: {', '.join(what)}"] if what else []
