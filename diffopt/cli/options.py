"""The verb that lists options."""

from __future__ import annotations

import argparse

from diffopt.cli import printing
from diffopt.cli.arguments import composer_of_arguments
from diffopt.cli.streams import say
from diffopt.config import catalogue
from diffopt.errors import UsageError


def run_ls_verb(args: argparse.Namespace) -> int:
    if len(args.group) > 1:
        raise UsageError("ls takes one group, or none to list the groups.")
    composer = composer_of_arguments(args)
    for note in composer.notes:
        say(f"note: {note}")
    if args.group:
        printing.print_options(args.group[0], catalogue.list_options(composer, args.group[0]))
    else:
        printing.print_groups(catalogue.list_groups(composer))
    return 0
