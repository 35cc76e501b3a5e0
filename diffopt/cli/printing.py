"""What the verbs print: rich tables on a terminal, plain aligned lines elsewhere."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from diffopt.recipe.labels import labels, one_line

if TYPE_CHECKING:
    from diffopt.config.catalogue import Row
    from diffopt.config.loaded_code import Code
    from diffopt.machine.environment import Environment
    from diffopt.machine.nvml import Device
    from diffopt.recipe.planned import Plan
    from diffopt.results.result import Result
    from diffopt.results.study import Study


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> None:
    """A table to stdout. ``right`` tells which columns are figures."""
    if not sys.stdout.isatty():
        print(aligned([headers, *rows]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell; the last one is left as it is."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def many_plans(plans: Sequence[Plan], code: Sequence[Sequence[Code]] = ()) -> str:
    """One line per cell, every reason of a refused one below it, code from elsewhere, and the count."""
    names = labels([plan.cell.model_dump(mode="json") for plan in plans])
    lines = []
    for plan, name in zip(plans, names, strict=True):
        lines.append(f"{plan.cell.id}  {plan.status:7}  {one_line(name)}")
        lines += [f"    {reason}" for reason in plan.reasons]
    lines += [f"runs: {each}" for each in dict.fromkeys(each for own in code for each in own)]
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        lines.append(f"note: {note}")
    counts = Counter(plan.status for plan in plans)
    lines.append(f"{len(plans)} cells: {counts['ok']} ok, {counts['refused']} refused")
    return "\n".join(lines)


def print_groups(groups: Sequence[tuple[str, Sequence[str]]]) -> None:
    print_table(("group", "options"), [(group, ", ".join(options)) for group, options in groups])


def print_options(group: str, rows: Sequence[Row]) -> None:
    shown = [(row.option, row.says, row.needs, row.here) for row in rows]
    if group == "model":
        headers = (group, "what it is", "needs", "fits here")
        print_table(headers, shown if sys.stdout.isatty() else wrapped([headers, *shown])[1:])
    else:
        print_table((group, "what it does", "needs", "works here"), shown)


def wrapped(rows: Sequence[Sequence[str]], width: int = 120) -> list[tuple[str, ...]]:
    """The rows in lines that fit side by side into ``width`` columns; the first and the last column keep theirs.

    But for a last one that says what is wrong with an option, which takes a third.
    """
    ends = [max(len(row[0]) for row in rows), min(width // 3, max(len(row[-1]) for row in rows))]
    between = len(rows[0]) - 2
    inner = (width - sum(ends) - 2 * (between + 1)) // between
    lines: list[tuple[str, ...]] = []
    for first, *middle, last in rows:
        cells = [[first], *(textwrap.wrap(cell, inner, break_on_hyphens=False) for cell in middle)]
        cells.append(textwrap.wrap(last, ends[1], break_on_hyphens=False))
        lines += zip_longest(*cells, fillvalue="")
    return lines


def print_environment(here: Environment, gpus: Sequence[Device], options: Mapping[str, Mapping[str, str]]) -> None:
    """Versions, devices, and which options can work here, with the reason where one cannot."""
    rows = [*here.versions.items(), ("cpu", f"{here.cpu.model}, {here.cpu.cores} cores")]
    for gpu in gpus:
        driver = f", driver {gpu.gpu.driver}" if gpu.gpu else ""
        rows.append(("gpu", f"{gpu.name}, {(gpu.memory_bytes or 0) / 1024**3:.0f} GiB{driver}"))
    if not gpus:
        rows.append(("gpu", "none that NVML knows of"))
    print(aligned(rows), end="\n\n")
    lines = [(f"{group}={option}", says) for group, chosen in options.items() for option, says in chosen.items()]
    print_table(("option", "works here"), lines)


def print_whereabouts(study: Study, results: Sequence[Result]) -> None:
    """Where the rows and the pictures of a run are."""
    print(f"\nstudy {study.name}: {study.path}")
    for result in results:
        folder = study.folder(result.cell_id, result.env_id)
        if result.artifacts.pictures:
            print(f"  {result.cell_id}  {folder / result.artifacts.pictures[0]}")
        elif result.artifacts.log:
            print(f"  {result.cell_id}  {folder / result.artifacts.log}")
