"""The verb ``check``: a smoke test of recipes on tiny weights, step by step; for the CI of whoever commits recipes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffopt.cli.arguments import composer_of_arguments, config_folders_of_arguments, trusted_folders_of_arguments
from diffopt.cli.streams import print_line
from diffopt.config.resolve import make_composer
from diffopt.config.smoke import Smoke, Smokes
from diffopt.errors import UsageError
from diffopt.run.check import run_check_processes

DEADLINE = 600.0  # seconds for one step, the first with starting Python; far more than a tiny pipeline takes
CAPTURED = " (captured; --compile generates code)"
COMPILING = 3600.0  # where code is generated


def run_check_verb(args: argparse.Namespace) -> int:
    """Exit code 0: every step that can be run here has its effect; 1: one has not, or a plan refuses a recipe."""
    smokes = list(_smokes(args))
    allowed = [smoke for smoke in smokes if not smoke.refused]
    left_out = [smoke for smoke in smokes if smoke.refused]
    for smoke in left_out:
        print_line(f"{smoke.title}: refused by its plan: {smoke.refused[0]}")
    failed, refused, shown = 0, len(left_out), -1
    plans = [smoke.plan for smoke in allowed]
    for answer in run_check_processes(plans, COMPILING if args.compile else DEADLINE):
        if answer.cell != shown:
            shown = answer.cell
            _begin(allowed[shown])
        if answer.step is not None:
            failed += not answer.ok and not answer.refused
            refused += answer.refused
            only = CAPTURED if answer.step.startswith("compile=") and allowed[shown].captured else ""
            word = "ok" if answer.ok else "refused" if answer.refused else "FAILS"
            print_line(f"  {word:7}  {answer.step}: {answer.says}{only}")
    ok = len(smokes) - failed - refused
    print_line(f"{len(smokes)} checked: {ok} ok, {failed} failed, {refused} refused")
    return 1 if failed or (refused and not args.all) else 0


def _begin(smoke: Smoke) -> None:
    cell = smoke.plan.cell
    print_line(
        f"{smoke.title} ({cell.recipe.model.weights} weights, {cell.workload.task}, {cell.recipe.hardware.name})"
    )
    for key, reason in smoke.not_run.items():
        print_line(f"  not run  {key}: {reason}")


def _smokes(args: argparse.Namespace) -> Iterator[Smoke]:
    files, words = _recipe_files(args)
    if args.all:
        if files or any(word.startswith(("recipe=", "model=")) for word in words):
            raise UsageError("check --all goes through every recipe and model; leave --recipe, recipe= and model= out.")
        composer = composer_of_arguments(args)
        smokes = Smokes(composer, compile_code=args.compile)
        for model in smokes.families():
            for recipe in composer.options("recipe"):
                yield smokes.make([f"model={model}", f"recipe={recipe}", *words])
    elif files:
        for file in files:
            composer = make_composer(
                file,
                config_folders_of_arguments(args.config_dir),
                trusted_folders_of_arguments(args.trust_config_dir),
            )
            yield Smokes(composer, compile_code=args.compile).make(words, title=str(file))
    else:
        yield Smokes(composer_of_arguments(args), compile_code=args.compile).make(words)


def _recipe_files(args: argparse.Namespace) -> tuple[Sequence[Path], list[str]]:
    """The files, and the overrides, of which some may stand behind the files."""
    given = [Path(word) for words in args.recipe or () for word in words]
    files = [path for path in given if "=" not in str(path) or path.exists()]
    return files, [*args.overrides, *(str(path) for path in given if path not in files)]
