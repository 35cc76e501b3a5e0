"""Files that appear whole, by a temporary file, fsync and rename; what is made is for its user alone.

And files below a folder that anybody may have filled, such as a study: no link is followed, and only a file is read.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

FOR_ITS_USER, FOLDER_FOR_ITS_USER = 0o600, 0o700
NOT_FOLLOWED = (errno.ELOOP, errno.EMLINK)  # what O_NOFOLLOW makes of a link: Linux and macOS, FreeBSD


@contextmanager
def file_that_appears_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of ``path`` when the block ends well, and leaves nothing otherwise.

    A reader, or a crash at any moment, sees the old file or the new one, never a part. A new one is for its user alone,
    whatever the umask; one that was there keeps its mode. A link there is not followed, but replaced.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with _made(partial) as file:
            yield file
            file.flush()
            with suppress(FileNotFoundError):
                if stat.S_ISREG((before := os.lstat(path)).st_mode):
                    os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode) & 0o777)
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


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


def open_regular_file(path: Path) -> BinaryIO:
    """A file to read. Raises OSError for what is none: a link, a folder, a pipe, which is not waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in NOT_FOLLOWED:
            raise OSError(error.errno, "it is a symbolic link", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return open(descriptor, "rb")


def read_regular_file(path: Path) -> bytes:
    """The content of a file. Raises OSError for what is none, see :func:`open_regular_file`."""
    with open_regular_file(path) as file:
        return file.read()


def first_link(root: Path, path: Path) -> Path | None:
    """The first symbolic link on the way from ``root``, which may be one itself, to ``path`` below it; None: no one."""
    at = root
    for part in path.relative_to(root).parts:
        at /= part
        if at.is_symlink():
            return at
    return None


def links_below(folder: Path) -> Iterator[Path]:
    """Every symbolic link below a folder; none is followed. Raises OSError for a folder that cannot be read."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield Path(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                yield from links_below(Path(entry.path))


def _made(path: Path) -> BinaryIO:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FOR_ITS_USER)
    return open(descriptor, "wb")
