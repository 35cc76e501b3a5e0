"""What the arguments of several verbs mean: config folders, and the cells that are asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffopt.config import Composer
from diffopt.config.reference import read_reference
from diffopt.config.request import Request
from diffopt.config.resolve import compose_requests, make_composer
from diffopt.machine.paths import existing_folder, own_folders
from diffopt.schema.reference import Reference


def config_folders_of_arguments(config_dir: Path | None) -> list[Path]:
    """The user's config folders: ``./conf`` when there is one, and ``--config-dir``."""
    return own_folders(() if config_dir is None else (config_dir,), "--config-dir")


def trusted_folders_of_arguments(config_dir: Path | None) -> list[Path]:
    """The folder of ``--trust-config-dir``."""
    return [] if config_dir is None else [existing_folder(config_dir, "--trust-config-dir")]


def requests_of_arguments(args: argparse.Namespace) -> list[Request]:
    """What the overrides ask for."""
    return compose_requests(
        args.overrides,
        multirun=getattr(args, "multirun", False),
        lock=args.recipe,
        folders=config_folders_of_arguments(args.config_dir),
        trusted=trusted_folders_of_arguments(args.trust_config_dir),
    )


def composer_of_arguments(args: argparse.Namespace) -> Composer:
    """A composer over the shipped options and the user's."""
    return Composer(
        config_folders_of_arguments(args.config_dir), trusted=trusted_folders_of_arguments(args.trust_config_dir)
    )


def reference_of_arguments(text: str) -> Reference:
    """What ``--reference`` names; its recipe is one of diffopt's or of ``./conf``."""
    return read_reference(make_composer(None, config_folders_of_arguments(None)), text, "--reference")
