"""Hydra's own flags: ``--cfg``, ``--info``, ``--hydra-help`` and shell completion."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from diffopt.cli.arguments import config_folders_of_arguments, trusted_folders_of_arguments
from diffopt.config import shell


def print_hydra_answer(arguments: Sequence[str], verbs: Sequence[str]) -> int:
    """Let Hydra answer a whole command line, over the shipped configs and the user's."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--config-dir", type=Path)
    own.add_argument("--trust-config-dir", type=Path)
    known, rest = own.parse_known_args(arguments)
    places = [
        *config_folders_of_arguments(known.config_dir),
        *trusted_folders_of_arguments(known.trust_config_dir),
    ]
    if any(word.startswith("query=") for word in rest):
        shell.print_hydra_completions(os.environ.get("COMP_LINE", ""), tuple(verbs), rest, places)
    else:
        shell.answer_as_hydra(rest[1:] if rest[0] in verbs else rest, places)
    return 0
