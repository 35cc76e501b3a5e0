"""Files that appear whole, by a temporary file, fsync and rename; what is made is for its user alone.

And links below a folder that anybody may have filled, such as a study: none is followed. See also reading.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from diffopt.errors import UsageError

FOR_ITS_USER, FOLDER_FOR_ITS_USER = 0o600, 0o700
LINK = "{} is a symbolic link; below a study none is followed, to read or to write. Remove it, or put a copy there."


@contextmanager
def file_that_appears_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of ``path`` when the block ends well, and leaves nothing otherwise.

    A reader, or a crash at any moment, sees the old file or the new one, never a part. A new one is for its user alone,
    whatever the umask; one that was there keeps its mode. A link there is not followed, but replaced. What killed
    processes wrote of the same file in part goes with the next that writes it.

    Raises OSError, which names ``path`` also where it comes from a write.
    """
    _remove_abandoned_parts(path)
    partial: Path | None = None
    try:
        file, partial = _locked_part(path)
        with file:
            yield file
            file.flush()
            with suppress(FileNotFoundError):
                if stat.S_ISREG((before := os.lstat(path)).st_mode):
                    os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode) & 0o777)
            os.fsync(file.fileno())
            os.replace(partial, path)  # while it is locked, lest it is taken for an abandoned one
    except BaseException as error:
        if partial is not None:
            with suppress(OSError):  # the folder has gone, or the disk fails: what came first is what is told
                partial.unlink()
        if isinstance(error, OSError) and error.errno:
            written = error.filename is None or _is_part_of(path, os.path.basename(str(error.filename)))
            error.filename = str(path) if written else error.filename
        raise


def rename_file(path: Path, to: Path) -> None:
    """Give a file another name, in the place of the file that has it."""
    os.replace(path, to)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that appears whole."""
    with file_that_appears_whole(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8 that appears whole."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Write JSON that appears whole. Raises ValueError for NaN and infinity, which are not JSON."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def open_new_file(path: Path) -> BinaryIO:
    """An empty file in the place of what was there, to write into; for its user alone. A link there is removed."""
    path.unlink(missing_ok=True)
    return _made(path)


def make_private_folders(folder: Path) -> None:
    """Make a folder and those above it that are not there, each for its user alone, whatever the umask."""
    if folder.is_dir():
        return
    make_private_folders(folder.parent)
    try:
        folder.mkdir(FOLDER_FOR_ITS_USER)
    except FileExistsError:
        if not folder.is_dir():
            raise


def remove_whatever(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link, but not what it leads to; nothing may be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_link(root: Path, path: Path) -> None:
    """Raises UsageError where a symbolic link lies between ``root``, which may be one itself, and ``path`` below it."""
    if (link := first_link(root, path)) is not None:
        raise UsageError(LINK.format(link))


def first_link(root: Path, path: Path) -> Path | None:
    """The first symbolic link on the way from ``root``, which may be one itself, to ``path`` below it; None: no one."""
    at = root
    for part in path.relative_to(root).parts:
        at /= part
        if at.is_symlink():
            return at
    return None


def links_below(folder: Path) -> Iterator[Path]:
    """Every symbolic link below a folder; none is followed.

    Those in a folder that this user may not read are left out: whoever goes in there is refused by the system. So are
    those in one that is removed meanwhile.
    """
    with suppress(PermissionError, FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield Path(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                yield from links_below(Path(entry.path))


def _locked_part(path: Path) -> tuple[BinaryIO, Path]:
    """A file beside ``path`` to write into, locked as long as it is open; where files can be locked."""
    while True:
        partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        file = _made(partial)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.lstat(partial)
            return file, partial
        except (BlockingIOError, FileNotFoundError):  # whoever clears up saw it before it was locked
            file.close()
            partial.unlink(missing_ok=True)
        except OSError:  # no locks there: nobody clears up either
            return file, partial


def _remove_abandoned_parts(path: Path) -> None:
    """Remove what was written of ``path`` by processes that are no more: the system drops their locks with them."""
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if _is_part_of(path, entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError), open(os.open(entry, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as part:
                    fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry)


def _is_part_of(path: Path, name: str) -> bool:
    return name.startswith(f".{path.name}.") and name.endswith(".tmp")


def _made(path: Path) -> BinaryIO:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FOR_ITS_USER)
    return open(descriptor, "wb")
