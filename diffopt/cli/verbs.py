"""The verbs. Each takes parsed arguments, prints, and returns the exit code."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from diffopt.errors import UsageError

if TYPE_CHECKING:
    from diffopt.config import Composer
    from diffopt.config.resolve import Request

# Imports stand inside the functions, so that each verb pays for what it uses: `diffopt --help` needs none of it.


def folders(config_dir: Path | None) -> list[Path]:
    """The user's config folders: ``./conf`` when there is one, and ``--config-dir``."""
    from diffopt.machine.paths import own_folders

    return own_folders(() if config_dir is None else (config_dir,), "--config-dir")


def trusted(config_dir: Path | None) -> list[Path]:
    """The folder of ``--trust-config-dir``."""
    from diffopt.machine.paths import existing

    return [] if config_dir is None else [existing(config_dir, "--trust-config-dir")]


def _requests(args: argparse.Namespace) -> list[Request]:
    from diffopt.config.resolve import requests

    return requests(
        args.overrides,
        multirun=getattr(args, "multirun", False),
        lock=args.recipe,
        folders=folders(args.config_dir),
        trusted=trusted(args.trust_config_dir),
    )


def _composer(args: argparse.Namespace) -> Composer:
    from diffopt.config import Composer

    return Composer(folders(args.config_dir), trusted=trusted(args.trust_config_dir))


def plan(args: argparse.Namespace) -> int:
    """Exit code 0: a plan that lists refusals has done its work."""
    from diffopt import api
    from diffopt.cli import show
    from diffopt.config.loaded_code import loaded_code

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
    from diffopt.cli import show
    from diffopt.config import catalogue

    if len(args.group) > 1:
        raise UsageError("ls takes one group, or none to list the groups.")
    composer = _composer(args)
    if args.group:
        show.print_options(args.group[0], catalogue.options(composer, args.group[0]))
    else:
        show.print_groups(catalogue.groups(composer))
    return 0


def show(args: argparse.Namespace) -> int:
    from diffopt.recipe import lock

    (request,) = _requests(args)
    print(lock.to_yaml(request.cell, request.choices, Path.cwd()), end="")
    return 0


def diff(args: argparse.Namespace) -> int:
    from diffopt.config.resolve import requests
    from diffopt.recipe import lock
    from diffopt.schema.words import text

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
    from diffopt.cli import show
    from diffopt.cli.progress import progress
    from diffopt.machine.interpreter import interpreters
    from diffopt.results.study import Study
    from diffopt.results.table import table
    from diffopt.run.sweep import run_all

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
    from diffopt.models.prefetch import fetch, targets

    models = [request.cell.recipe.model for request in _requests(args)]
    for name in dict.fromkeys(model.name for model in models if not list(targets(model))):
        print(f"model={name}: nothing to fetch, its files are here or its weights are drawn")
    for target in dict.fromkeys(target for model in models for target in targets(model)):
        fetched = fetch(target)
        revision = f"revision {target.revision or 'main'}"
        print(f"{target.id}  {revision}  commit {fetched.commit}  {fetched.size} bytes", flush=True)
    return 0


def env(args: argparse.Namespace) -> int:
    from diffopt.cli import show
    from diffopt.config import catalogue
    from diffopt.machine import environment, nvml
    from diffopt.recipe.recipe import STEP_GROUPS

    composer = _composer(args)
    options = {group: {row.option: row.here for row in catalogue.options(composer, group)} for group in STEP_GROUPS}
    here = environment.environment("cpu")
    gpus = [nvml.gpu_device(gpu.uuid) for gpu in nvml.detect()]
    if args.json:
        facts = {"versions": here.versions, "cpu": here.cpu.model_dump(), "gpus": [gpu.model_dump() for gpu in gpus]}
        print(json.dumps({**facts, "options": options}, indent=2))
    else:
        show.print_environment(here, gpus, options)
    return 0


def doctor(args: argparse.Namespace) -> int:
    """Exit code 1 when something fails that this machine should be able to do."""
    from diffopt.doctor import examine

    found = examine.examine((lambda finding: None) if args.json else examine.print_finding)
    if args.json:
        print(json.dumps({"works": examine.works(found), "checks": [f.model_dump() for f in found]}, indent=2))
    else:
        print(examine.summary(found))
    return 0 if examine.works(found) else 1
