"""Paths: those that users write, the shipped configs, where studies lie."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePath

from diffopt.errors import UsageError


def user_path(text: str | Path, key: str) -> Path:
    """``text`` as a path, ``~`` expanded; relative ones stay relative to the working directory.

    Raises UsageError, naming ``key``, for what no file can be called (too long, a NUL, an unknown ``~user``).
    """
    try:
        path = Path(text).expanduser()
        path.lstat()  # asks the system, which refuses what cannot be a name
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RuntimeError) as error:
        shown = str(text) if len(str(text)) <= 60 else f"{str(text)[:57]}..."
        raise UsageError(f"{key}={shown!r} cannot be a path: {getattr(error, 'strerror', None) or error}.") from error
    return path


def shipped_conf() -> Path:
    """Return ``conf/``: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def user_cache() -> Path:
    """diffopt's folder in the user's cache: ``XDG_CACHE_HOME``, else ``~/.cache``. A relative one is ignored (XDG).

    Raises RuntimeError for a user without a home.
    """
    folder = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(folder) if os.path.isabs(folder) else Path.home() / ".cache") / "diffopt"


def own_folders(named: Iterable[str | Path], key: str) -> list[Path]:
    """The user's config folders: ``./conf`` when there is one, and those that are named.

    Raises UsageError, naming ``key``, where a named one does not exist.
    """
    found = [existing_folder("conf", "the config folder")] if Path("conf").is_dir() else []
    found += [existing_folder(folder, key) for folder in named]
    return [folder for folder in found if folder.resolve() != shipped_conf().resolve()]


def existing_folder(folder: str | Path, key: str) -> Path:
    """The folder as a path. Raises UsageError, naming ``key``, where it does not exist or must not be read."""
    path = user_path(folder, key)
    try:
        if path.is_dir():
            with os.scandir(f"{path}/."):  # which takes the right to list it and the one to enter it
                return path
    except OSError as error:
        raise UsageError(f"{key} {folder} cannot be read: {error.strerror}.") from error
    raise UsageError(f"{key} {folder}: there is no such folder.")


def source_in_words(filename: str) -> str:
    """A source file from its package on, without the folders of this machine; by its name where it is in none."""
    parts = PurePath(filename).parts
    for root in ("site-packages", "dist-packages"):
        if root in parts:
            return "/".join(parts[parts.index(root) + 1 :])
    package = PurePath(__file__).parents[1]
    if PurePath(filename).is_relative_to(package):
        return PurePath(filename).relative_to(package.parent).as_posix()
    return parts[-1] if parts else filename


STUDIES = Path("studies")  # of named studies, in the working directory
STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def path_of_study(name_or_path: str | Path) -> Path:
    """``NAME`` means studies/NAME; whatever has a separator in it is a path. Raises UsageError for neither."""
    if not isinstance(name_or_path, str | Path):
        raise UsageError("study: a study has a name or a path, which is a text; a number needs quotes, 'study=\"1\"'.")
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.startswith("~"):
        return user_path(name_or_path, "study")
    if not STUDY_NAME.fullmatch(text):
        raise UsageError(f"study={text}: a study's name has letters, digits, '.', '_' and '-'; a path has a '/' in it.")
    return user_path(STUDIES / text, "study")
