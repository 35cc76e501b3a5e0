"""A study as a table: one row per cell, with a reason where there is no figure."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from diffopt.recipe.labels import labels
from diffopt.results.reference import reference_of
from diffopt.results.result import Metrics, Result
from diffopt.schema.words import flatten, text

MIB = 1024**2


@dataclass(frozen=True)
class Table:
    """Headers and rows of text; ``right`` tells which columns are figures."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int]


def table(results: Sequence[Result]) -> Table:
    """The table that a person reads: what tells the cells apart, then the figures, then the reason.

    "first call s" is followed by ``(warm)`` where inductor took every graph from its cache on disk, else by ``(cold)``;
    by nothing where it compiled nothing. "peak MiB" is memory allocated while steady; where CUDA graphs were recorded,
    memory reserved, since a replay's activations are not allocated.
    """
    results = useful(results)
    names = labels([result.point for result in results])
    if len({result.env_id for result in results}) > 1:
        names = [{**name, "device": _where(result)} for name, result in zip(names, results, strict=True)]
    if len({_torch(result) for result in results}) > 1:
        names = [{**name, "torch": _torch(result)} for name, result in zip(names, results, strict=True)]
    keys = list(dict.fromkeys(key for name in names for key in name))
    figures = ("status", "latency s", "it/s", "images/s", "speed-up", "first call s", "peak MiB", "reason")
    rows = [
        (result.cell_id, *(name.get(key, "") for key in keys), *_figures(result, results))
        for result, name in zip(results, names, strict=True)
    ]
    first = 1 + len(keys)
    return Table(("cell", *keys, *figures), tuple(rows), frozenset(range(first + 1, first + len(figures) - 1)))


def useful(results: Sequence[Result]) -> list[Result]:
    """Without the refusals for want of a device or a package of cells that have a row from elsewhere."""
    rows = Counter(result.cell_id for result in results)
    return [r for r in results if rows[r.cell_id] == 1 or (r.status, r.stage) != ("refused", "load")]


def _where(result: Result) -> str:
    return f"{result.environment.device.name or 'none'} ({result.env_id})"


def _torch(result: Result) -> str:
    return result.environment.versions.get("torch", "none")


def _figures(result: Result, results: Sequence[Result]) -> tuple[str, ...]:
    metrics = result.metrics
    status = result.status if result.status != "ok" or result.valid else "ok, not valid"
    latency = metrics.latency_s.median if metrics.latency_s else None
    reference = reference_of(result, results)
    speed_up = None
    if latency and reference and reference.metrics.latency_s:
        speed_up = reference.metrics.latency_s.median / latency
    memory = peak_bytes(result)
    return (
        status,
        _number(latency, ".4g"),
        " / ".join(_number(stage.iterations_per_second, ".4g") for stage in metrics.stages),
        _number(metrics.images_per_second, ".4g"),
        f"{speed_up:.2f}x" if speed_up is not None else "",
        _first_call(metrics),
        _number(memory / MIB if memory else None, ".0f"),
        _reason(result),
    )


def peak_bytes(result: Result) -> int | None:
    """Memory allocated while steady, or as far as the cell came; reserved where CUDA graphs were recorded."""
    records = any(effect.numbers.get("cuda_graphs") for effect in result.effects)
    peak = result.metrics.peak_reserved_bytes if records else result.metrics.peak_memory_bytes
    return peak.steady or peak.first_call


def _first_call(metrics: Metrics) -> str:
    seconds, cache = _number(metrics.first_call_s, ".3g"), metrics.compile_cache
    return seconds if cache is None else f"{seconds} ({'cold' if cache.misses else 'warm'})"


def _reason(result: Result) -> str:
    if result.status == "ok":
        return result.reason or ""
    return f"{result.stage}: {result.reason}" if result.reason else result.stage


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def to_markdown(shown: Table) -> str:
    """The table in Markdown, columns aligned for reading as plain text too."""
    lines = [shown.headers, *shown.rows]
    cells = [[_escape(cell) for cell in line] for line in lines]
    widths = [max(len(row[index]) for row in cells) for index in range(len(shown.headers))]

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if index in shown.right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = [("-" * (width - 1) + ":") if i in shown.right else "-" * width for i, width in enumerate(widths)]
    return "\n".join([line(cells[0]), line(rule), *(line(row) for row in cells[1:])]) + "\n"


def _escape(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")


def to_csv(results: Sequence[Result]) -> str:
    """Every value of every row, one column per dotted key of ``result.json`` but the raw samples."""
    rows = []
    for result in results:
        data = result.model_dump(mode="json")
        data["effects"] = "; ".join(f"{effect.group}: {effect.summary}" for effect in result.effects)
        for stage in data["metrics"].pop("stages"):
            data["metrics"][f"stage_{stage['name']}"] = stage
        rows.append({key: "" if value is None else text(value) for key, value in flatten(data)})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
