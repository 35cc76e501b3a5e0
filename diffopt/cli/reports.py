"""The verbs that read studies: report and compare."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from diffopt.cli.streams import print_line, say
from diffopt.errors import UsageError
from diffopt.recipe.cell import Cell
from diffopt.results import comparison, sides
from diffopt.results.compare import Comparison, cells_only_in_study, compare_studies
from diffopt.results.damage import compared_rows, damage_sheet
from diffopt.results.published.pages import page_layout_of, published_page
from diffopt.results.result import Result
from diffopt.results.sheet import contact_sheet
from diffopt.results.study import Study
from diffopt.results.table import Table, results_table, values_table
from diffopt.schema.reference import AUTO, Reference
from diffopt.schema.words import harmless_line


def run_report_verb(args: argparse.Namespace) -> int:
    _check_report(args)
    reference = _reference(args.reference)
    if args.published is not None:
        return _print_parts(published_page(args.published, args.charts, args.gpu))
    if len(args.study) != 1:
        raise UsageError("report takes one study: its name, or the path of its directory.")
    study = Study.open(args.study[0])
    results = _rows(study, args.study[0])
    if args.like is not None:
        return _print_parts(page_layout_of(args.like)(results, args.charts, args.gpu, _sweep))
    if args.pictures is not None:
        _write_sheet(study, results, args.pictures)
    else:
        print(values_table(results).csv() if args.csv else _with_foot(results_table(results, reference)), end="")
    return 0


def _reference(text: str | None) -> Reference:
    """What ``--reference`` names."""
    if text is None:
        return AUTO
    from diffopt.cli.arguments import reference_of_arguments  # here, since a report without one needs no Hydra

    return reference_of_arguments(text)


def _with_foot(shown: Table) -> str:
    """In Markdown, the lines below it a paragraph each."""
    return shown.markdown() + "".join(f"\n{harmless_line(line)}\n" for line in shown.foot)


def _rows(study: Study, name: str, on_lost: Callable[[str], None] = lambda text: None) -> tuple[Result, ...]:
    """The rows of a study; what cannot be read, and cells without a row, are told.

    Args:
        on_lost: given the same texts.

    Raises:
        UsageError: there is no row.
    """
    unreadable: list[UsageError] = []
    results = study.results(unreadable.append)
    said = [f"left out: {error}" for error in unreadable]
    if results and (unfinished := study.unfinished()):
        said.append(
            f"{len(unfinished)} cells have no row, they run now or were cut off: the same run command takes them up "
            f"again ({', '.join(unfinished)})"
        )
    for text in said:
        say(text)
        on_lost(text)
    if not results:
        raise UsageError(f"The study {name} has no result{' that can be read' if unreadable else ' yet'}.")
    return results


def run_compare_verb(args: argparse.Namespace) -> int:
    """Exit code 1 where ``--slower`` is given and a cell fails it, or nothing could be judged."""
    words = [word for word in args.sides if sides.is_selection_of_rows(word)]
    names = [word for word in args.sides if not sides.is_selection_of_rows(word)]
    if not 1 <= len(names) <= 2:
        raise UsageError(f"compare takes one study or two, but got {len(names)}.")
    chosen = sides.row_selections(words, len(names))
    if args.slower is not None and not 0 <= args.slower < float("inf"):
        raise UsageError(f"--slower {args.slower:g}: give the percentage by which B may be slower, 0 or more.")
    lost: list[str] = []
    rows = {name: _rows(Study.open(name), name, lost.append) for name in dict.fromkeys(names)}
    before, after = (sides.select_rows(rows[n], side, n) for n, side in zip((names[0], names[-1]), chosen, strict=True))
    key = chosen[0].key if chosen[0] is not None and len(words) == 2 else None
    found = compare_studies(before, after, key, one_study=len(names) == 1)
    changes, more = comparison.environment_changes_between_studies(found), cells_only_in_study(after, found)
    if args.json:
        print(
            json.dumps(
                {"changes": changes, "cells": comparison.comparisons_to_json(found)}, indent=2, ensure_ascii=False
            )
        )
    else:
        for line in changes:
            print_line(line)
        print(comparison.comparison_table(found).markdown(), end="")
    if more:
        say(f"{len(more)} cells of B have no counterpart in A: {', '.join(more)}")
    return 0 if args.slower is None else _gate(found, args.slower, lost)


def _gate(found: Sequence[Comparison], percent: float, lost: Sequence[str]) -> int:
    """Exit code 1, and why, where a cell fails, or could not be judged."""
    said = [f"{each.name}: {each.change}" for each in found if each.fails(percent)]
    said += [f"not judged: {text}" for text in lost]
    if all(each.ratio is None for each in found):
        said += ["no cell has a figure on both sides, so nothing was judged"]
    for text in said:
        say(f"--slower {percent:g}: {text}")
    return 1 if said else 0


def _check_report(args: argparse.Namespace) -> None:
    """Raises UsageError for flags that do not go together."""
    own = ("csv", "pictures", "like", "published")  # each is a report of its own
    given = [f"--{flag}" for flag in own if getattr(args, flag) not in (None, False)]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} are different reports: give one of them.")
    if args.published is not None and args.study:
        raise UsageError("--published takes no study, it prints others' figures; --like puts a study beside them.")
    drawn = [f"--{flag}" for flag in ("charts", "gpu") if getattr(args, flag) is not None]
    if drawn and args.like is None and args.published is None:
        raise UsageError(f"{' and '.join(drawn)}: the charts are those of --like and --published.")
    if args.reference is not None and given:
        raise UsageError(f"--reference is for the table with speed-ups, which {given[0]} does not print.")
    if args.like is not None:
        page_layout_of(args.like)


def _sweep(name: str) -> list[Cell]:
    """The cells of a shipped sweep; for which hardware they are composed changes none of their settings."""
    from diffopt.config.resolve import compose_requests  # here, since all other reports do without Hydra

    return [request.cell for request in compose_requests([f"sweep={name}", "hardware=cpu"], multirun=True)]


def _print_parts(parts: Iterator[str]) -> int:
    """Parts of a Markdown page, with an empty line between them."""
    for index, part in enumerate(parts):
        print(f"\n{part}" if index else part, end="")
    return 0


def _write_sheet(study: Study, results: Sequence[Result], path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise UsageError(f"--pictures {path}: the contact sheet is a PNG; give a name that ends in .png.")
    sheet = damage_sheet if compared_rows(results) else contact_sheet
    try:
        sheet(study, results, on_unreadable=lambda error: say(f"left out: {error}")).save(path)
    except OSError as error:
        raise UsageError(f"--pictures {path}: {error.strerror or error}") from error
    print_line(f"{len(compared_rows(results)) or len(results)} cells on {path}")
