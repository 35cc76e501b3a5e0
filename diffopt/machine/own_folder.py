"""Folders of this user's alone: what a cache holds is loaded as code, or believed, so nobody else may write to it."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from shlex import quote

from diffopt.errors import Refusal
from diffopt.machine.files import make_private_folders

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def own_folder(folder: Path, variable: str) -> Path:
    """``folder`` with its links followed; made for this user alone where it is absent.

    Args:
        variable: of the environment, that names another one.

    Raises:
        Refusal: it cannot be made, it belongs to another user, or others may write to it.
    """
    real = Path(os.path.realpath(folder))
    try:
        make_private_folders(real)
    except OSError as error:
        raise Refusal(
            f"The cache folder {folder} cannot be made: {error.strerror}. Name one of your own: {variable}=/a/folder."
        ) from error
    check_own_folder(real, variable, str(folder))
    return real


def check_own_folder(folder: Path, variable: str, called: str) -> None:
    """Raises Refusal, see :func:`own_folder`, for a folder that is there."""
    if (found := _strangers_folder(folder)) is not None:
        why, remedy = found
        link = "" if called == str(folder) else f" (which is {folder})"
        raise Refusal(
            f"The cache folder {called}{link} {why}. What lies in a cache is loaded as code or believed, so nothing of "
            f"it was used. Name one of your own, {variable}=/a/folder; or, if you know what is in this one: {remedy}."
        )


def _strangers_folder(folder: Path) -> tuple[str, str] | None:
    """Why somebody else may have put something into a folder, and what would change that; None where nobody can."""
    about = folder.stat()
    if about.st_uid != os.geteuid():
        return f"belongs to {_user_name(about.st_uid)}, not to you", f"sudo chown {os.geteuid()} {quote(str(folder))}"
    if about.st_mode & OTHERS_WRITE:
        return "can be written to by others than you", f"chmod 700 {quote(str(folder))}"
    for above in folder.parents:  # who may rename it, may put another one in its place
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return f"lies in {above}, in which anybody may replace it", f"chmod o-w {quote(str(above))}"
    return None


def _user_name(uid: int) -> str:
    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"the user {uid}"
