"""A study in the layout of a published benchmark, with the published figures beside ours where they can be compared."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from diffopt.errors import UsageError
from diffopt.recipe.cell import Cell
from diffopt.results.published.figures import Figure, published_figures, published_gpu_name
from diffopt.results.published.layout import (
    BREAK,
    COMPILED,
    NOT_HERE,
    NOTHING,
    PLAIN,
    REFUSED,
    Entry,
    PublishedColumn,
    published_number,
)
from diffopt.results.published.places import Place, places_on_published_page, published_counterpart
from diffopt.results.result import Result
from diffopt.results.table import useful_rows

LONGEST_REASON = 400  # characters; `result.json` has all of it
MOST_NAMED = 3  # rows in a note; the tables have all of them
INFERRED = {
    "deepfloyd_if_ii_m": "IF-II-M"
}  # architectures of which the card tells no more than the size; whose they are


@dataclass(frozen=True)
class Likeness:
    """A study's cells (``ours``), those of them that charts show (``drawn``), the published ones and the ratios
    (``beside``), the order of the columns of both, and why figures are missing."""

    ours: tuple[Entry, ...]
    drawn: tuple[Entry, ...]
    beside: tuple[Entry, ...]
    columns: tuple[PublishedColumn, ...]
    notes: tuple[str, ...]


def likeness_to_published(
    results: Sequence[Result], name: str, sweep: Sequence[Cell], gpu: str | None = None
) -> Likeness:
    """The rows of a study as cells of the benchmark's tables.

    The published figure beside ours is of the newest torch of the page, and of the same model, settings, batch size,
    and compile or not; where there is none, nothing stands beside it. Rows of other pipelines are left out. ``notes``
    tell what is missing, and why.

    Args:
        results: rows of a study.
        name: the benchmark.
        sweep: the cells of the sweep that has its settings.
        gpu: whose published figures stand beside every row, as the page writes it; None: those of the row's own GPU.

    Raises:
        UsageError: no row is of a pipeline that the benchmark has.
    """
    figures = published_figures(name)
    rows = places_on_published_page(useful_rows(results), name, sweep)
    if not rows:
        pipelines = ", ".join(dict.fromkeys(f"{figure.option} {figure.task}" for figure in figures))
        raise UsageError(f"No row of this study is of a pipeline that the benchmark has: {pipelines}.")
    ours = tuple(_entry(row) for row in rows)
    page = _page_column(figures, gpu)
    beside, ratios = [], []
    compared = [(row, entry, _theirs(row, figures, gpu)) for row, entry in zip(rows, ours, strict=True)]
    for row, entry, theirs in compared:
        if theirs and not row.unlike:
            beside.append(_their_entry(row, theirs, page))
            ratios.append(_ratio(entry, theirs, gpu))
    order = [(row.torch, row.mode) for row in sorted(rows, key=lambda row: row.column)]
    columns = [*order, *((page, mode) for mode in (PLAIN, COMPILED))]
    columns += [(_over_published(torch, gpu), mode) for torch, mode in order]
    notes = [*_reasons(rows), *_missing_gpus(rows, figures, gpu)]
    notes += _other_settings([row for row, _, theirs in compared if theirs], name)
    notes += [*_inferred([row for row, _, theirs in compared if theirs and not row.unlike])]
    notes += _left_out(results, figures)
    drawn = _drawn(rows, ours)
    notes += _not_drawn(rows, ours, drawn)
    return Likeness(ours, drawn, (*beside, *ratios), tuple(dict.fromkeys(columns)), tuple(notes))


def _entry(row: Place) -> Entry:
    """A row that is not valid shows its figures, which then count for nothing else."""
    result = row.result
    speeds = tuple(stage.iterations_per_second for stage in result.metrics.stages)
    counted = speeds if result.status == "ok" and result.valid else ()
    return Entry(row.gpu, row.batch_size, row.pipeline, row.torch, row.mode, _text(result, speeds), counted)


def _text(result: Result, speeds: Sequence[float]) -> str:
    if result.status == "refused":  # what fails while loading is for want of a device, a package or a file
        return NOT_HERE if result.phase == "load" else REFUSED
    if result.status != "ok":
        return f"{'OOM' if result.status == 'oom' else result.status} at {result.phase}"
    text = BREAK.join(map(published_number, speeds)) or "no figure"
    return text if result.valid else f"{text} (not valid)"


def _newest(figures: Sequence[Figure]) -> str:
    return figures[-1].torch  # a page's columns go from the oldest to the newest


def _page_column(figures: Sequence[Figure], gpu: str | None) -> str:
    return f"published {_newest(figures)}" + ("" if gpu is None else f", {gpu}")


def _over_published(torch: str, gpu: str | None) -> str:
    return f"{torch} / published" + ("" if gpu is None else f", {gpu}")


def _theirs(row: Place, figures: Sequence[Figure], gpu: str | None) -> list[Figure]:
    """The published figures, one per stage, of a row's model, batch size, and compile or not."""
    hardware = row.hardware if gpu is None else published_gpu_name(gpu)
    if not row.is_the_published_model:
        return []
    wanted = (hardware, row.batch_size, row.like.option, row.like.task, _newest(figures), row.compiled)
    return [f for f in figures if (f.hardware, f.batch_size, f.option, f.task, f.torch, f.compiled) == wanted]


def _their_entry(row: Place, theirs: Sequence[Figure], column: str) -> Entry:
    """All figures as iterations per second, where the page has some as seconds per iteration."""
    speeds = _speeds(theirs)
    mode = COMPILED if row.compiled else PLAIN
    text = BREAK.join(map(published_number, speeds)) or theirs[0].text
    return Entry(row.gpu, row.batch_size, row.pipeline, column, mode, text, speeds)


def _speeds(figures: Sequence[Figure]) -> tuple[float, ...]:
    return tuple(figure.iterations_per_second for figure in figures if figure.iterations_per_second is not None)


def _ratio(ours: Entry, theirs: Sequence[Figure], gpu: str | None) -> Entry:
    """Ours over theirs, of the stages that both have: for batches the page has a cascade's first stage only."""
    ratios = tuple(mine / other for mine, other in zip(ours.speeds, _speeds(theirs), strict=False))
    text = BREAK.join(f"{ratio:.2f}x" for ratio in ratios) or NOTHING
    return Entry(ours.gpu, ours.batch_size, ours.pipeline, _over_published(ours.torch, gpu), ours.mode, text, ratios)


def _drawn(rows: Sequence[Place], ours: Sequence[Entry]) -> tuple[Entry, ...]:
    """Of a pipeline that has figures with the page's settings, the rows that bear its name; of others, all.

    The tables have the rest: as groups of bars, the rungs of a ladder would outnumber the page's pipelines.
    """

    def pipeline(row: Place) -> tuple[object, ...]:
        return row.gpu, row.batch_size, row.name

    own: dict[tuple[object, ...], set[str]] = {}
    for row, entry in zip(rows, ours, strict=True):
        if entry.speeds and not row.unlike:
            own.setdefault(pipeline(row), set()).add(row.pipeline)
    pairs = zip(rows, ours, strict=True)
    return tuple(entry for row, entry in pairs if entry.pipeline in own.get(pipeline(row), (entry.pipeline,)))


def _not_drawn(rows: Sequence[Place], ours: Sequence[Entry], drawn: Sequence[Entry]) -> list[str]:
    left = Counter(row.name for row, entry in zip(rows, ours, strict=True) if entry not in drawn)
    what = ", ".join(f"{count} of {name}" for name, count in left.items())
    why = "rows that the charts leave out, since they have the page's settings where there are such rows"
    return [f"{why}: {what}"] if left else []


def _reasons(rows: Sequence[Place]) -> list[str]:
    """One line per reason, with the cells that it holds for."""
    cells: dict[str, list[Place]] = {}
    for row in rows:
        result = row.result
        if result.status == "ok" and result.valid:
            continue
        state = "not valid" if result.status == "ok" else f"{result.status} at {result.phase}"
        reason = textwrap.shorten(result.reason or "no reason is on record", LONGEST_REASON, placeholder=" …")
        cells.setdefault(f"{state}: {reason}", []).append(row)
    return [f"{what} ({_some(_where(found, lambda row: row.pipeline))})" for what, found in cells.items()]


def _with_pipelines(said: Mapping[str, Sequence[Place]]) -> list[str]:
    """What holds for rows whose settings it says, or has nothing to do with: the pipelines tell which they are."""
    return [f"{what} ({_some(_where(rows, lambda row: row.name))})" for what, rows in said.items()]


def _where(rows: Sequence[Place], named: Callable[[Place], str]) -> list[str]:
    """Rows in words, those of one name and GPU together where the columns have them in the same batches."""
    batches: dict[tuple[str, str, str], dict[int, None]] = {}
    for row in rows:
        batches.setdefault((named(row), row.gpu, f"{row.torch} - {row.mode}"), {})[row.batch_size] = None
    columns: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for (name, gpu, column), sizes in batches.items():
        columns.setdefault((name, gpu, tuple(sizes)), []).append(column)
    return [
        f"{name}, batch {_and(map(str, sizes))}, {_and(found)}, {gpu}" for (name, gpu, sizes), found in columns.items()
    ]


def _and(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _some(words: Sequence[str]) -> str:
    more = len(words) - MOST_NAMED
    return "; ".join([*words[:MOST_NAMED], *([f"and {more} more"] if more > 0 else [])])


def _missing_gpus(rows: Sequence[Place], figures: Sequence[Figure], gpu: str | None) -> list[str]:
    """One line when nothing of the page can stand beside rows, since it has not their GPU."""
    known = {figure.hardware for figure in figures}
    own = [row for row in rows if row.is_the_published_model]
    missing = dict.fromkeys(row.gpu for row in own if row.hardware not in known)
    if gpu is not None or not missing:
        return []
    theirs = dict.fromkeys(figure.gpu for figure in figures)
    return [
        f"the page has no {' and no '.join(missing)}; its GPUs are {', '.join(theirs)}. --gpu NAME puts the figures of "
        f"one of them beside every row"
    ]


def _other_settings(rows: Sequence[Place], name: str) -> list[str]:
    """What keeps rows from being compared, with the rows."""
    cells: dict[str, list[Place]] = {}
    for row in rows:
        if row.unlike:
            what = ", ".join(f"{mine} instead of {theirs}" for mine, theirs in row.unlike.items())
            cells.setdefault(f"not compared, since sweep={name} asks otherwise: {what}", []).append(row)
    return _with_pipelines(cells)


def _inferred(rows: Sequence[Place]) -> list[str]:
    """One line when a stage is compared whose random weights are only like the published ones."""
    found: dict[str, list[Place]] = {}
    for row in rows:
        model = row.result.cell["recipe"]["model"]
        for index, stage in enumerate((model, *model.get("cascade", ())), start=1):
            if stage["architecture"] in INFERRED and stage["weights"] == "random":
                like = f"{INFERRED[stage['architecture']]}-like"
                found.setdefault(f"stage {index} is {like}: random weights, of inferred widths", []).append(row)
    return _with_pipelines(found)


def _left_out(results: Sequence[Result], figures: Sequence[Figure]) -> list[str]:
    others = [result for result in results if published_counterpart(result, figures) is None]
    what = dict.fromkeys(f"{r.cell['recipe']['model']['name']} {r.cell['workload']['task']}" for r in others)
    return [f"left out, since the benchmark has no such pipeline: {', '.join(what)}"] if what else []
