"""What the verbs print: rich tables on a terminal, plain aligned lines elsewhere."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from diffopt.cli.streams import drawing_stream, print_line
from diffopt.machine.hardware import GIB
from diffopt.recipe.labels import cell_label_line, cell_labels
from diffopt.recipe.planned import measured_in_rounds
from diffopt.results.table import Table
from diffopt.schema.words import harmless_line

if TYPE_CHECKING:
    from diffopt.config.catalogue import Row
    from diffopt.config.loaded_code import Code
    from diffopt.machine.environment import Environment
    from diffopt.machine.nvml import Device
    from diffopt.recipe.planned import Plan
    from diffopt.results.result import Result
    from diffopt.results.study import Study

PROSE = 24  # letters: a column of longer cells with spaces in them is written in words


def print_table(shown: Table) -> None:
    """A table to stdout, and the lines below it."""
    if sys.stdout.isatty():
        _draw_table(shown)
    else:
        print(shown.text(), end="")
    for line in shown.foot:
        print_line(line)


def _draw_table(shown: Table) -> None:
    """As wide as the terminal, with only what is written in words on several lines; else a block for each row."""
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    console, shown = Console(file=drawing_stream(sys.stdout)), shown.harmless()
    least, words = _least_widths(shown)
    if sum(least) + 2 * len(least) > console.width and shown.headers:
        for row in shown.rows:
            lines = [f"  {header}: {cell}" for header, cell in zip(shown.headers[1:], row[1:], strict=True) if cell]
            console.print(Text("\n".join([row[0], *lines])), soft_wrap=True)
        return
    drawn = Drawn(box=None, pad_edge=False, header_style="bold")
    for index, header in enumerate(shown.headers):
        figure, prose = index in shown.right, index in words
        drawn.add_column(
            header.replace(" ", "\n") if figure else header,
            justify="right" if figure else "left",
            no_wrap=not prose,
            min_width=least[index],
        )
    for row in shown.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console.print(drawn)


def _least_widths(shown: Table) -> tuple[list[int], frozenset[int]]:
    """Of each column, with no name or id broken; and which are written in words, on several lines where they must."""
    heads = [max(h.split(), key=len) if i in shown.right else h for i, h in enumerate(shown.headers)]
    columns = [list(column) for column in zip(heads, *shown.rows, strict=True)]
    longest = [max(map(len, column)) for column in columns]
    words = frozenset(i for i, column in enumerate(columns) if longest[i] > PROSE and any(" " in c for c in column))
    parts = [max(len(word) for cell in column for word in cell.split() or [""]) for column in columns]
    return [max(parts[i], min(longest[i], PROSE)) if i in words else longest[i] for i in range(len(columns))], words


def many_plans_in_words(plans: Sequence[Plan], code: Sequence[Sequence[Code]] = ()) -> str:
    """One line per cell, every reason of a refused one below it, code from elsewhere, and the count."""
    names = cell_labels([plan.cell.model_dump(mode="json") for plan in plans])
    lines = []
    for plan, name in zip(plans, names, strict=True):
        lines.append(f"{plan.cell.id}  {plan.status:7}  {cell_label_line(name)}")
        lines += [f"    {reason}" for reason in plan.reasons]
    lines += [f"runs: {each}" for each in dict.fromkeys(each for own in code for each in own)]
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        lines.append(f"note: {note}")
    counts = Counter(plan.status for plan in plans)
    called = sum(plan.called for plan in plans)
    said = f"; {called} called once without weights: ok" if called else ""
    lines.append(f"{len(plans)} cells: {counts['ok']} ok, {counts['refused']} refused{said}")
    lines += measured_in_rounds(plans)
    return "\n".join(map(harmless_line, lines))


def print_rest(study: str, results: Sequence[Result], minutes: float | None) -> None:
    """How to go on, where a sweep had a time limit and cells are left, cut off, not begun or failed."""
    rows = {result.cell_id: result for result in results}.values()
    left = sum(not row.final and row.status != "refused" for row in rows)
    if minutes is not None and left:
        print()
        print_line(
            f"launch.minutes={minutes:g}: {left} of {len(rows)} cells have no final row. "
            f"The same command with study={study} goes on."
        )


def print_groups(groups: Sequence[tuple[str, Sequence[str]]]) -> None:
    print_table(Table(("group", "options"), tuple((group, ", ".join(options)) for group, options in groups)))


def print_options(group: str, rows: Sequence[Row]) -> None:
    what, where = ("what it is", "fits here") if group == "model" else ("what it does", "works here")
    shown = Table((group, what, "needs", where), tuple((row.option, row.says, row.needs, row.here) for row in rows))
    print_table(shown.wrapped() if group == "model" and not sys.stdout.isatty() else shown)


def print_environment(here: Environment, gpus: Sequence[Device], options: Mapping[str, Mapping[str, str]]) -> None:
    """Versions, devices, and which options can work here, with the reason where one cannot."""
    rows = [*here.versions.items(), ("cpu", f"{here.cpu.model}, {here.cpu.cores} cores")]
    for gpu in gpus:
        driver = f", driver {gpu.gpu.driver}" if gpu.gpu else ""
        rows.append(("gpu", f"{gpu.name}, {(gpu.memory_bytes or 0) / GIB:.0f} GiB{driver}"))
    if not gpus:
        rows.append(("gpu", "none that NVML knows of"))
    print(Table((), tuple(rows)).text())
    lines = [(f"{group}={option}", says) for group, chosen in options.items() for option, says in chosen.items()]
    print_table(Table(("option", "works here"), tuple(lines)))


def print_study_folder(study: Study, results: Sequence[Result]) -> None:
    """Where the rows and the pictures of a run are."""
    print()
    print_line(f"study {study.name}: {study.path}")
    for result in results:
        folder = study.folder(result.cell_id, result.env_id)
        named = [*result.artifacts.pictures[:1], *filter(None, [result.artifacts.log])]
        there = [path for path in (folder / name for name in named) if os.path.lexists(path)]  # not with a lost study
        for path in there[:1]:
            print_line(f"  {result.cell_id}  {path}")
