"""What the verbs print: rich tables on a terminal, plain aligned lines elsewhere."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from diffopt.machine.hardware import GIB
from diffopt.recipe.labels import cell_label_line, cell_labels
from diffopt.recipe.planned import measured_in_rounds
from diffopt.results.table import Table

if TYPE_CHECKING:
    from diffopt.config.catalogue import Row
    from diffopt.config.loaded_code import Code
    from diffopt.machine.environment import Environment
    from diffopt.machine.nvml import Device
    from diffopt.recipe.planned import Plan
    from diffopt.results.result import Result
    from diffopt.results.study import Study


def print_table(shown: Table) -> None:
    """A table to stdout, and the lines below it."""
    if sys.stdout.isatty():
        _draw_table(shown)
    else:
        print(shown.text(), end="")
    for line in shown.foot:
        print(line)


def _draw_table(shown: Table) -> None:
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    drawn = Drawn(box=None, pad_edge=False, header_style="bold")
    for index, header in enumerate(shown.headers):
        figure = index in shown.right
        drawn.add_column(
            header.replace(" ", "\n") if figure else header,
            justify="right" if figure else "left",
            overflow="fold",
            no_wrap=figure,
        )
    for row in shown.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)


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
    lines.append(f"{len(plans)} cells: {counts['ok']} ok, {counts['refused']} refused")
    lines += measured_in_rounds(plans)
    return "\n".join(lines)


def print_rest(study: str, results: Sequence[Result], minutes: float | None) -> None:
    """How to go on, where a sweep had a time limit and cells are left, cut off, not begun or failed."""
    rows = {result.cell_id: result for result in results}.values()
    left = sum(not row.final and row.status != "refused" for row in rows)
    if minutes is not None and left:
        print(
            f"\nlaunch.minutes={minutes:g}: {left} of {len(rows)} cells have no final row. "
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
    print(f"\nstudy {study.name}: {study.path}")
    for result in results:
        folder = study.folder(result.cell_id, result.env_id)
        if result.artifacts.pictures:
            print(f"  {result.cell_id}  {folder / result.artifacts.pictures[0]}")
        elif result.artifacts.log:
            print(f"  {result.cell_id}  {folder / result.artifacts.log}")
