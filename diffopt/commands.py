"""The verbs. Each takes parsed arguments, prints, and returns the exit code."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diffopt.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from diffopt.compare import Comparison
    from diffopt.compose import Composer
    from diffopt.resolve import Request
    from diffopt.result import Result
    from diffopt.study import Study

# Imports stand inside the functions, so that each verb pays for what it uses: `diffopt --help` needs none of it.


def folders(config_dir: Path | None) -> list[Path]:
    """The user's config folders: ``./conf`` when there is one, and ``--config-dir``."""
    from diffopt.shipped import own_folders

    return own_folders(() if config_dir is None else (config_dir,), "--config-dir")


def trusted(config_dir: Path | None) -> list[Path]:
    """The folder of ``--trust-config-dir``."""
    from diffopt.shipped import existing

    return [] if config_dir is None else [existing(config_dir, "--trust-config-dir")]


def _requests(args: argparse.Namespace) -> list[Request]:
    from diffopt.resolve import requests

    return requests(
        args.overrides,
        multirun=getattr(args, "multirun", False),
        lock=args.recipe,
        folders=folders(args.config_dir),
        trusted=trusted(args.trust_config_dir),
    )


def _composer(args: argparse.Namespace) -> Composer:
    from diffopt.compose import Composer

    return Composer(folders(args.config_dir), trusted=trusted(args.trust_config_dir))


def plan(args: argparse.Namespace) -> int:
    """Exit code 0: a plan that lists refusals has done its work."""
    from diffopt import api, show
    from diffopt.loaded_code import loaded_code

    requests = _requests(args)
    plans = [api.plan(request.cell) for request in requests]
    code = [loaded_code(request) for request in requests]
    if args.json:
        cells = [
            {**plan.to_json(request.choices), "code": [each.to_json() for each in own]}
            for plan, request, own in zip(plans, requests, code, strict=True)
        ]
        print(json.dumps({"cells": cells}, indent=2, ensure_ascii=False))
    elif len(plans) == 1:
        print(plans[0].text(code[0]))
    else:
        print(show.many_plans(plans, [request.choices for request in requests], code))
    return 0


def ls(args: argparse.Namespace) -> int:
    from diffopt import listing, show

    if len(args.group) > 1:
        raise UsageError("ls takes one group, or none to list the groups.")
    composer = _composer(args)
    if args.group:
        show.print_options(args.group[0], listing.options(composer, args.group[0]))
    else:
        show.print_groups(listing.groups(composer))
    return 0


def show(args: argparse.Namespace) -> int:
    from diffopt import lock

    (request,) = _requests(args)
    print(lock.to_yaml(request.cell, request.choices, Path.cwd()), end="")
    return 0


def diff(args: argparse.Namespace) -> int:
    from diffopt import lock
    from diffopt.labels import text
    from diffopt.resolve import requests

    sides = [word for word in args.recipes if "=" not in word]
    overrides = [word for word in args.recipes if "=" in word]
    if len(sides) != 2:
        raise UsageError(f"diff takes two recipes, names or files that `show` printed, but got {len(sides)}.")
    cells = []
    for side in sides:
        is_file = Path(side).is_file() or side.endswith((".yaml", ".yml"))
        chosen = overrides if is_file else [f"recipe={side}", *overrides]
        lock_file, own = Path(side) if is_file else None, trusted(args.trust_config_dir)
        (request,) = requests(chosen, lock=lock_file, folders=folders(args.config_dir), trusted=own)
        cells.append(request.cell)
    for key, before, after in lock.changes(*cells):
        print(f"{key}: {text(before)} -> {text(after)}")
    return 0


def run(args: argparse.Namespace) -> int:
    from diffopt import show
    from diffopt.interpreter import interpreters
    from diffopt.progress import progress
    from diffopt.report import table
    from diffopt.runner import run_all
    from diffopt.study import Study

    requests = _requests(args)
    name = requests[0].study
    with interpreters(request.cell.runtime for request in requests) as others:  # asked before there is a study
        study = Study.fresh() if name is None else Study.create(name)
        with progress() as listener:
            results = run_all(requests, study, requests[0].launch, listener, others)
    shown = table(results)
    show.print_table(shown.headers, shown.rows, right=shown.right)
    show.print_whereabouts(study, results)
    fine = ("ok", "refused") if args.multirun else ("ok",)
    return 0 if all(result.status in fine for result in results) else 1


def prefetch(args: argparse.Namespace) -> int:
    """Prints as it goes: some models take an hour."""
    from diffopt.prefetch import fetch, targets

    models = [request.cell.recipe.model for request in _requests(args)]
    for name in dict.fromkeys(model.name for model in models if not list(targets(model))):
        print(f"model={name}: nothing to fetch, its files are here or its weights are drawn")
    for target in dict.fromkeys(target for model in models for target in targets(model)):
        fetched = fetch(target)
        revision = f"revision {target.revision or 'main'}"
        print(f"{target.id}  {revision}  commit {fetched.commit}  {fetched.size} bytes", flush=True)
    return 0


def report(args: argparse.Namespace) -> int:
    from diffopt.report import table, to_csv, to_markdown
    from diffopt.study import Study

    _check_report(args)
    if args.published is not None:
        from diffopt.published.pages import published_page

        return _print_parts(published_page(args.published, args.charts, args.gpu))
    if len(args.study) != 1:
        raise UsageError("report takes one study: its name, or the path of its directory.")
    study = Study.open(args.study[0])
    results = _rows(study, args.study[0])
    if args.like is not None:
        from diffopt.published.pages import layout_of

        return _print_parts(layout_of(args.like)(results, args.charts, args.gpu))
    if args.pictures is not None:
        _write_sheet(study, results, args.pictures)
    else:
        print(to_csv(results) if args.csv else to_markdown(table(results)), end="")
    return 0


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
        print(f"diffopt: {text}", file=sys.stderr)
        on_lost(text)
    if not results:
        raise UsageError(f"The study {name} has no result{' that can be read' if unreadable else ' yet'}.")
    return results


def compare(args: argparse.Namespace) -> int:
    """Exit code 1 where ``--slower`` is given and a cell fails it, or nothing could be judged."""
    from diffopt import compare as module
    from diffopt import compare_table, sides
    from diffopt.report import to_markdown
    from diffopt.study import Study

    words = [word for word in args.sides if sides.is_selection(word)]
    names = [word for word in args.sides if not sides.is_selection(word)]
    if not 1 <= len(names) <= 2:
        raise UsageError(f"compare takes one study or two, but got {len(names)}.")
    chosen = sides.selections(words, len(names))
    if args.slower is not None and not 0 <= args.slower < float("inf"):
        raise UsageError(f"--slower {args.slower:g}: give the percentage by which B may be slower, 0 or more.")
    lost: list[str] = []
    rows = {name: _rows(Study.open(name), name, lost.append) for name in dict.fromkeys(names)}
    before, after = (sides.select(rows[n], side, n) for n, side in zip((names[0], names[-1]), chosen, strict=True))
    key = chosen[0].key if chosen[0] is not None and len(words) == 2 else None
    found = module.compare(before, after, key, one_study=len(names) == 1)
    changes, more = compare_table.changes(found), module.only_in(after, found)
    if args.json:
        print(json.dumps({"changes": changes, "cells": compare_table.to_json(found)}, indent=2, ensure_ascii=False))
    else:
        print("".join(f"{line}\n" for line in changes), end="")
        print(to_markdown(compare_table.comparison_table(found)), end="")
    if more:
        print(f"diffopt: {len(more)} cells of B have no counterpart in A: {', '.join(more)}", file=sys.stderr)
    return 0 if args.slower is None else _gate(found, args.slower, lost)


def _gate(found: Sequence[Comparison], percent: float, lost: Sequence[str]) -> int:
    """Exit code 1, and why, where a cell fails, or could not be judged."""
    said = [f"{comparison.name}: {comparison.change}" for comparison in found if comparison.fails(percent)]
    said += [f"not judged: {text}" for text in lost]
    if all(comparison.ratio is None for comparison in found):
        said += ["no cell has a figure on both sides, so nothing was judged"]
    for text in said:
        print(f"diffopt: --slower {percent:g}: {text}", file=sys.stderr)
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
    if args.like is not None:
        from diffopt.published.pages import layout_of

        layout_of(args.like)


def _print_parts(parts: Iterator[str]) -> int:
    """Parts of a Markdown page, with an empty line between them."""
    for index, part in enumerate(parts):
        print(f"\n{part}" if index else part, end="")
    return 0


def _write_sheet(study: Study, results: Sequence[Result], path: Path) -> None:
    from diffopt.sheet import contact_sheet

    if path.suffix.lower() != ".png":
        raise UsageError(f"--pictures {path}: the contact sheet is a PNG; give a name that ends in .png.")
    try:
        contact_sheet(study, results).save(path)
    except OSError as error:
        raise UsageError(f"--pictures {path}: {error.strerror or error}") from error
    print(f"{len(results)} cells on {path}")


def env(args: argparse.Namespace) -> int:
    from diffopt import environment, hardware, listing, show
    from diffopt.recipe import STEP_GROUPS

    composer = _composer(args)
    options = {group: {row.option: row.here for row in listing.options(composer, group)} for group in STEP_GROUPS}
    here = environment.environment("cpu")
    gpus = [environment.gpu_device(gpu.uuid) for gpu in hardware.detect()]
    if args.json:
        facts = {"versions": here.versions, "cpu": here.cpu.model_dump(), "gpus": [gpu.model_dump() for gpu in gpus]}
        print(json.dumps({**facts, "options": options}, indent=2))
    else:
        show.print_environment(here, gpus, options)
    return 0


def doctor(args: argparse.Namespace) -> int:
    """Exit code 1 when something fails that this machine should be able to do."""
    from diffopt import doctor as doctor_module

    found = doctor_module.examine((lambda finding: None) if args.json else doctor_module.print_finding)
    if args.json:
        print(json.dumps({"works": doctor_module.works(found), "checks": [f.model_dump() for f in found]}, indent=2))
    else:
        print(doctor_module.summary(found))
    return 0 if doctor_module.works(found) else 1
