"""The layout of the published tables: one per GPU and batch size, a row per pipeline, a column per torch and mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from diffopt.results.published.figures import Figure
from diffopt.results.table import Table

PLAIN, COMPILED = "no compile", "compile"
BREAK = " / <br>"  # between the figures of a cascade
NOTHING = "-"  # not measured
REFUSED = "❌"  # cannot run
NOT_HERE = "not here"  # may run where there is what this machine lacks

PublishedColumn = tuple[str, str]  # its two lines: which torch, and the mode


@dataclass(frozen=True)
class Entry:
    """One cell of such a table."""

    gpu: str
    batch_size: int  # pictures per call
    pipeline: str
    torch: str  # the column's first line, such as "torch 2.0"
    mode: str  # and its second: "no compile", "compile"
    text: str
    speeds: tuple[float, ...]  # iterations per second, one per stage; () where there is no figure


def published_entries(figures: Sequence[Figure]) -> list[Entry]:
    """Published figures as the cells that they stand in; those of one cell lie next to each other."""

    def place(figure: Figure) -> tuple[str, int, str, str, str]:
        mode = COMPILED if figure.compiled else PLAIN
        return figure.gpu, figure.batch_size, figure.pipeline, f"torch {figure.torch}", mode

    found = []
    for where, members in groupby(figures, place):
        stages = list(members)
        speeds = tuple(f.iterations_per_second for f in stages if f.iterations_per_second is not None)
        found.append(Entry(*where, BREAK.join(figure.text for figure in stages), speeds))
    return found


def published_number(speed: float) -> str:
    """Iterations per second as the page has them, to two places; below 1 to three."""
    return f"{speed:.2f}" if speed >= 1 else f"{speed:.3f}"


def published_tables(cells: Sequence[Entry], columns: Sequence[PublishedColumn] = ()) -> list[tuple[str, Table]]:
    """``(heading, table)`` of each GPU and batch size; tables and rows in the order in which cells name them.

    Columns, too, unless ``columns`` tells their order. A cell that is not there reads ``-``.
    """
    by_table: dict[str, list[Entry]] = {}
    for cell in cells:
        by_table.setdefault(f"{cell.gpu} (batch size: {cell.batch_size})", []).append(cell)
    return [(heading, _table(members, columns)) for heading, members in by_table.items()]


def _table(cells: Sequence[Entry], order: Sequence[PublishedColumn]) -> Table:
    named = dict.fromkeys((cell.torch, cell.mode) for cell in cells)
    columns = [column for column in order if column in named] or list(named)
    said = {(cell.pipeline, cell.torch, cell.mode): cell.text for cell in cells}
    rows = tuple(
        (pipeline, *(said.get((pipeline, *column), NOTHING) for column in columns))
        for pipeline in dict.fromkeys(cell.pipeline for cell in cells)
    )
    headers = ("Pipeline", *(f"{torch} - <br>{mode}" for torch, mode in columns))
    return Table(headers, rows, frozenset(range(1, len(headers))))
