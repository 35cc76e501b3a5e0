"""Where configs lie. Knows no Hydra, so that whoever only reads one of them does not pay for it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from diffopt.errors import UsageError
from diffopt.paths import user_path


def shipped_conf() -> Path:
    """Return ``conf/``: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def own_folders(named: Iterable[str | Path], key: str) -> list[Path]:
    """The user's config folders: ``./conf`` when there is one, and those that are named.

    Raises UsageError, naming ``key``, where a named one does not exist.
    """
    found = [Path("conf")] if Path("conf").is_dir() else []
    found += [existing(folder, key) for folder in named]
    return [folder for folder in found if folder.resolve() != shipped_conf().resolve()]


def existing(folder: str | Path, key: str) -> Path:
    """The folder as a path. Raises UsageError, naming ``key``, where it does not exist."""
    path = user_path(folder, key)
    if not path.is_dir():
        raise UsageError(f"{key} {folder}: there is no such folder.")
    return path
