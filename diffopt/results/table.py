"""Tables and their faces; a study as one: a row per cell, with a reason where there is no figure."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from diffopt.recipe.labels import cell_labels
from diffopt.results.quality import QualityFigures, flip_of_floors
from diffopt.results.result import Column, Metrics, Result
from diffopt.results.speed_up import speed_ups
from diffopt.results.spread import notes_on_spread, spread_in_words
from diffopt.schema.reference import AUTO, Reference
from diffopt.schema.words import flatten_to_dotted_keys, harmless, harmless_line, value_in_words

MIB = 1024**2
OF_PICTURES = ("pictures", "FLIP", "floors", "PSNR dB", "accuracy")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # with which a cell begins that a spreadsheet computes
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
TAG = re.compile(r"<(?!br>)(?=[A-Za-z/!?])")  # a table of a page breaks its headers


@dataclass(frozen=True)
class Table:
    """Headers and rows of text, and their faces; ``right`` tells which columns are figures, ``foot`` what to know."""

    headers: tuple[str, ...]  # () where there are none
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()
    foot: tuple[str, ...] = ()  # lines below it
    links: frozenset[int] = frozenset()  # columns that nothing of a row gets into: their links stay links in Markdown

    def markdown(self) -> str:
        """In Markdown, columns aligned for reading as plain text too."""
        cells = self._escaped()
        widths = [max(width, 2) for width in _widths(cells)]  # a rule has a dash beside its colon
        head, *body = ([*map(self._pad, range(len(widths)), row, widths)] for row in cells)
        rule = ["-" * (width - 1) + ":" if i in self.right else "-" * width for i, width in enumerate(widths)]
        return _markdown([head, rule, *body])

    def compact(self) -> str:
        """In Markdown without padding, for pages whose cells are long."""
        head, *body = self._escaped()
        return _markdown([head], "|".join(["---:" if i in self.right else "---" for i in range(len(head))]), body)

    def centred(self) -> str:
        """In Markdown without padding, every column centred, the headers bold."""
        head, *body = self._escaped()
        return _markdown([[f"**{header}**" for header in head]], "|".join([":---:"] * len(head)), body)

    def text(self) -> str:
        """Plain lines: columns padded to their widest cell, but for the last one."""
        shown = self.harmless()
        lines = [shown.headers, *shown.rows] if shown.headers else shown.rows
        widths = _widths(lines)
        padded = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
        return "".join(f"{line}\n" for line in padded)

    def csv(self) -> str:
        """Comma-separated values, with the headers.

        A cell that a spreadsheet would take for a formula has an apostrophe before it.
        """
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([*map(_no_formula, line)] for line in (self.headers, *self.rows))
        return out.getvalue()

    def harmless(self) -> Table:
        """The same with every cell in one line, and nothing in it that a terminal would obey."""
        head, *rows = (tuple(map(harmless_line, line)) for line in (self.headers, *self.rows))
        return replace(self, headers=head, rows=tuple(rows))

    def wrapped(self, width: int = 120) -> Table:
        """In lines that fit side by side into ``width`` columns; the first and the last column keep theirs.

        But for a last one that says what is wrong with an option, which takes a third.
        """
        lines = [self.headers, *self.rows]
        ends = [max(len(row[0]) for row in lines), min(width // 3, max(len(row[-1]) for row in lines))]
        between = len(self.headers) - 2
        inner = (width - sum(ends) - 2 * (between + 1)) // between
        rows: list[tuple[str, ...]] = []
        for first, *middle, last in self.rows:
            cells = [[first], *(textwrap.wrap(cell, inner, break_on_hyphens=False) for cell in middle)]
            cells.append(textwrap.wrap(last, ends[1], break_on_hyphens=False))
            rows += zip_longest(*cells, fillvalue="")
        return Table(self.headers, tuple(rows), self.right)

    def _escaped(self) -> list[list[str]]:
        lines = (self.headers, *self.rows)
        return [[_in_markdown(cell, i in self.links) for i, cell in enumerate(line)] for line in lines]

    def _pad(self, column: int, cell: str, width: int) -> str:
        return cell.rjust(width) if column in self.right else cell.ljust(width)


def _in_markdown(cell: str, links: bool) -> str:
    """A cell as text and nothing else: no column of its own, no HTML tag, no link and no picture from elsewhere."""
    text = " ".join(harmless(cell).split()).replace("|", "\\|")
    return TAG.sub(r"\<", text if links else text.replace("](", "]\\("))


def _no_formula(cell: str) -> str:
    quote = "'" if cell.startswith(FORMULA) and not NUMBER.fullmatch(cell) else ""
    return quote + harmless(cell)  # a carriage return would end the row


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def _markdown(head: Sequence[Sequence[str]], rule: str = "", body: Sequence[Sequence[str]] = ()) -> str:
    between = [f"|{rule}|"] if rule else []
    lines = [*(f"| {' | '.join(row)} |" for row in head), *between, *(f"| {' | '.join(row)} |" for row in body)]
    return "\n".join(lines) + "\n"


def results_table(results: Sequence[Result], reference: Reference = AUTO) -> Table:
    """The table that a person reads: what tells the cells apart, then the figures, then the reason.

    "first call s" is followed by ``(warm)`` where inductor took every graph from its cache on disk, else by ``(cold)``;
    by nothing where it compiled nothing. "peak MiB" is memory allocated while steady; where CUDA graphs were recorded,
    memory reserved, since a replay's activations are not allocated. "speed-up" is over the row of ``reference``.
    Where pictures were compared: the verdict, the mean FLIP by itself and in floors, PSNR, and how many prompts are
    drawn as asked, where that can be told.
    """
    results = useful_rows(results)
    names = cell_labels([result.point for result in results])
    if len({result.env_id for result in results}) > 1:
        names = [{**name, "device": _where(result)} for name, result in zip(names, results, strict=True)]
    if len({_torch(result) for result in results}) > 1:
        names = [{**name, "torch": _torch(result)} for name, result in zip(names, results, strict=True)]
    keys = list(dict.fromkeys(key for name in names for key in name))
    columns = _columns_of_metrics(results)
    more = [column.header for column in columns.values()]
    pictures = any(result.quality is not None for result in results)
    figures: tuple[str, ...] = ("status", "latency s", "n", "it/s", *more, "speed-up", "first call s", "peak MiB")
    figures += OF_PICTURES if pictures else ()
    reason = ("reason",) if any(map(_reason, results)) else ()
    found = speed_ups(results, reference)
    rows = [
        (
            result.cell_id,
            *(name.get(key, "") for key in keys),
            *_figures(result, columns, speed_up, pictures),
            *((_reason(result),) if reason else ()),
        )
        for result, name, speed_up in zip(results, names, found.words, strict=True)
    ]
    first = 1 + len(keys)
    right = frozenset(range(first + 1, first + len(figures)))
    foot = (*notes_on_spread(results), *found.notes, *(_notes_on_pictures(results) if pictures else ()))
    return Table(("cell", *keys, *figures, *reason), tuple(rows), right, foot)


def _notes_on_pictures(results: Sequence[Result]) -> list[str]:
    """What the columns say, and why a row has no figure."""
    found = [result.quality for result in results if result.quality is not None]
    versions = sorted({each.thresholds for each in found if each.thresholds is not None})
    by = f"by version {', '.join(map(str, versions))} of the thresholds" if versions else "of which none was compared"
    said = [f"pictures: beside those of the reference, {by}; FLIP: 0 is equal"]
    floors = sorted({floor.changed for each in found for floor in each.floors if floor.distance is not None})
    said += [f"floors: FLIP over the reference's own under another {' or '.join(floors)}"] if floors else []
    if any(each.is_reference for each in found):
        said.append("the reference's row was drawn anew by another process: its distance is no floor")
    lacking = [f"no floor {f.changed}: {f.reason}" for each in found for f in each.floors if f.reason]
    return said + list(dict.fromkeys([*(each.reason for each in found if each.reason), *lacking]))


def useful_rows(results: Sequence[Result]) -> list[Result]:
    """Without the refusals for want of a device or a package of cells that have a row from elsewhere."""
    rows = Counter(result.cell_id for result in results)
    return [r for r in results if rows[r.cell_id] == 1 or (r.status, r.phase) != ("refused", "load")]


def _where(result: Result) -> str:
    return f"{result.environment.device.name or 'none'} ({result.env_id})"


def _torch(result: Result) -> str:
    return result.environment.versions.get("torch", "none")


def _columns_of_metrics(results: Sequence[Result]) -> dict[str, Column]:
    """The metrics that have a column of their own and a figure in some row, by the name of their field."""
    stated = {
        name: column
        for name, field in Metrics.model_fields.items()
        for column in field.metadata
        if isinstance(column, Column)
    }
    return {
        name: column
        for name, column in stated.items()
        if any(getattr(result.metrics, name) is not None for result in results)
    }


def _figures(result: Result, columns: Mapping[str, Column], speed_up: str, pictures: bool) -> tuple[str, ...]:
    metrics = result.metrics
    latency = metrics.latency_s
    memory = peak_memory_of_row(result)
    return (
        result.status_in_words,
        f"{latency.median:.4g} {spread_in_words(latency)}" if latency else "",
        str(len(latency.samples)) if latency else "",
        " / ".join(_number(stage.iterations_per_second, ".4g") for stage in metrics.stages),
        *(_number(getattr(metrics, name), column.form) for name, column in columns.items()),
        speed_up,
        _first_call(metrics),
        _number(memory / MIB if memory else None, ".0f"),
        *(_of_pictures(result.quality) if pictures else ()),
    )


def _of_pictures(found: QualityFigures | None) -> tuple[str, ...]:
    """The verdict, the distance by itself and in floors, and what the pictures show."""
    if found is None or (distance := found.distance) is None:
        verdict, accuracy = (None, None) if found is None else (found.verdict, found.accuracy)
        return (verdict or "", "", "", "", _number(accuracy, ".0%"))
    floor, psnr = flip_of_floors(found), distance.psnr
    return (
        "reference" if found.is_reference else found.verdict or "",
        f"{distance.flip.mean:.4f}",
        "none" if floor is None else f"{distance.flip.mean / floor:.1f}" if floor else "floor is 0",
        "equal" if psnr is None else f"{psnr.mean:.1f}",
        _number(found.accuracy, ".0%"),
    )


def peak_memory_of_row(result: Result) -> int | None:
    """Memory allocated while steady, or as far as the cell came; reserved where CUDA graphs were recorded."""
    records = any(effect.numbers.get("cuda_graphs") for effect in result.effects)
    peak = result.metrics.peak_reserved_bytes if records else result.metrics.peak_memory_bytes
    return peak.steady or peak.first_call


def _first_call(metrics: Metrics) -> str:
    seconds, cache = _number(metrics.first_call_s, ".3g"), metrics.compile_cache
    return seconds if cache is None else f"{seconds} ({'cold' if cache.misses else 'warm'})"


def _reason(result: Result) -> str:
    """In one line; one that a plan refuses for several reasons has a line for each."""
    reason = " ".join((result.reason or "").split("\n"))
    if result.status == "ok":
        return reason
    return f"{result.phase}: {reason}" if reason else result.phase


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def values_table(results: Sequence[Result]) -> Table:
    """Every value of every row: one column per dotted key of ``result.json``, ``n`` and ``spread`` of a latency."""
    rows = []
    for result in results:
        data = result.model_dump(mode="json")
        data["effects"] = "; ".join(f"{effect.group}: {effect.summary}" for effect in result.effects)
        if latency := result.metrics.latency_s:
            data["metrics"]["latency_s"] |= {"n": len(latency.samples), "spread": latency.spread}
        data |= {f"round_{number}": each for number, each in enumerate(data.pop("rounds"), 1)}
        for stage in data["metrics"].pop("stages"):
            data["metrics"][f"stage_{stage['name']}"] = stage
        rows.append(
            {key: "" if value is None else value_in_words(value) for key, value in flatten_to_dotted_keys(data)}
        )
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    return Table(columns, tuple(tuple(row.get(column, "") for column in columns) for row in rows))
