"""Folders for a while: gone when their block ends; those of a process that was killed go when the next one is made."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from diffopt.errors import Refusal

PREFIX = "diffopt-"
OURS = re.compile(r"diffopt-[a-z]+-[a-z0-9_]{8}")  # as mkdtemp names them; a study of that kind of name is unlikely
OWNER = ".owner"  # a file in each folder; its owner has it locked, and the system drops the lock with the process


@contextmanager
def temporary_folder(purpose: str, place: Path | None = None) -> Iterator[Path]:
    """A new folder; removes what killed processes of this user have left beside it.

    Args:
        purpose: a part of its name.
        place: where it is made, which must be there; None: where the system has such folders.
    """
    where = place_of_temporary_files() if place is None else place
    remove_abandoned_folders(where)
    with told_as_place_of_temporary_files(where) if place is None else nullcontext():
        folder, lock = _owned_folder(purpose, where)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def place_of_temporary_files() -> Path:
    """Where the system has such files. Raises Refusal where none of its folders takes any."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        raise Refusal("No folder for temporary files can be written to here. Name one: TMPDIR=/a/folder.") from None


@contextmanager
def told_as_place_of_temporary_files(place: Path) -> Iterator[None]:
    """An OSError becomes a Refusal that names the place, lest it is taken for a fault of what else is written."""
    try:
        yield
    except OSError as error:
        said = f"temporary files cannot be written to {place}: {error.strerror or error}"
        raise Refusal(f"{said}. Name another: TMPDIR=/a/folder.") from None


def _owned_folder(purpose: str, place: Path) -> tuple[Path, int]:
    """A folder and the descriptor of its lock. Whoever clears up may have taken one before it was locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-", dir=place))
        with suppress(FileNotFoundError):
            lock = os.open(folder / OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            if _lock(lock) and (folder / OWNER).stat().st_ino == os.fstat(lock).st_ino:
                return folder, lock
            os.close(lock)


def remove_abandoned_folders(place: Path | None = None) -> None:
    """Remove the folders of this user whose owner is no more. One without the file was never used: it is empty.

    Args:
        place: where they are looked for, which need not be there; None: where the system has such folders.
    """
    place = place_of_temporary_files() if place is None else place
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if OURS.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_uid == os.getuid():
                        _remove_if_abandoned(Path(entry.path))


def _remove_if_abandoned(folder: Path) -> None:
    try:
        lock = os.open(folder / OWNER, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        folder.rmdir()  # raises where it is not empty, and so is none of these
        return
    try:
        if _lock(lock):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
