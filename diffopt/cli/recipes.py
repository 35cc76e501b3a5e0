"""The verbs that read recipes: show and diff."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffopt.cli.arguments import config_folders_of_arguments, requests_of_arguments, trusted_folders_of_arguments
from diffopt.cli.streams import can_be_shown, print_line
from diffopt.config.resolve import compose_requests
from diffopt.errors import UsageError
from diffopt.recipe import lock
from diffopt.schema.words import value_in_words


def run_show_verb(args: argparse.Namespace) -> int:
    (request,) = requests_of_arguments(args)
    text = lock.recipe_to_yaml(request.cell, Path.cwd())
    if not can_be_shown(text):  # the stream's own escapes would read back as backslashes
        text = lock.recipe_to_yaml(request.cell, Path.cwd(), ascii_only=True)
    print(text, end="")
    return 0


def run_diff_verb(args: argparse.Namespace) -> int:
    sides = [word for word in args.recipes if "=" not in word]
    overrides = [word for word in args.recipes if "=" in word]
    if len(sides) != 2:
        raise UsageError(f"diff takes two recipes, names or files that `show` printed, but got {len(sides)}.")
    cells = []
    for side in sides:
        is_file = Path(side).is_file() or side.endswith((".yaml", ".yml"))
        chosen = overrides if is_file else [f"recipe={side}", *overrides]
        lock_file, own = Path(side) if is_file else None, trusted_folders_of_arguments(args.trust_config_dir)
        (request,) = compose_requests(
            chosen, lock=lock_file, folders=config_folders_of_arguments(args.config_dir), trusted=own
        )
        cells.append(request.cell)
    for key, before, after in lock.recipe_differences(*cells):
        print_line(f"{key}: {value_in_words(before)} -> {value_in_words(after)}")
    return 0
