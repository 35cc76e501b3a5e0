"""Files that somebody names or has left, read so that none of them waits for ever, never ends, or fills the memory."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffopt.errors import UsageError

MIB = 1024**2
NOT_FOLLOWED = (errno.ELOOP, errno.EMLINK)  # what O_NOFOLLOW makes of a link: Linux and macOS, FreeBSD
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
}


@contextmanager
def opened_file(path: Path, said: str, most: int | None = None, *, follow: bool = True) -> Iterator[io.BufferedReader]:
    """A file, open for reading bytes.

    Args:
        said: what the message begins with, such as ``workload.image=NAME``.
        most: bytes that it may have; any number without.
        follow: whether it may be a link to one. Below a study none is; of the folders on the way there
            :func:`diffopt.machine.files.refuse_link` knows.

    Raises:
        UsageError: it is something else than a file, or larger.
        OSError: it is not there, or must not be read.
    """
    number = _descriptor(path, said, follow=follow)
    try:
        size = refuse_odd_file(number, said)
    except UsageError:
        os.close(number)
        raise
    with os.fdopen(number, "rb") as file:
        if most is not None and size > most:
            raise _too_large(said, f"{size / MIB:.1f} MiB", most)
        yield file


def kind_of_file(mode: int) -> str:
    """What lies there, by its mode, where it is no file."""
    return KINDS.get(stat.S_IFMT(mode), "something else")


def refuse_odd_file(file: Path | int, said: str) -> int:
    """The size of a file, by its descriptor or by its path, of which a link is not followed.

    Raises:
        UsageError: it is something else than a file.
        OSError: it is not there.
    """
    found = os.fstat(file) if isinstance(file, int) else os.lstat(file)
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{said}: this is {kind_of_file(found.st_mode)}, not a file.")
    return found.st_size


def _descriptor(path: Path, said: str, *, follow: bool) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY  # a pipe would wait for a writer
    try:
        return os.open(path, flags if follow else flags | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in NOT_FOLLOWED and not follow:
            raise UsageError(f"{said}: this is a symbolic link, which is not followed here.") from None
        if error.errno == errno.ENXIO:  # a socket, or a device that is not there, cannot even be opened
            raise UsageError(f"{said}: this is {kind_of_file(path.stat().st_mode)}, not a file.") from None
        raise


def read_file(path: Path, said: str, most: int, *, follow: bool = True) -> bytes:
    """The content of a file of at most ``most`` bytes; see :func:`opened_file`."""
    with opened_file(path, said, most, follow=follow) as file:
        content = file.read(most + 1)
    if len(content) > most:  # it grew, or is one of those that say no size, such as those in /proc
        raise _too_large(said, "more", most)
    return content


def _too_large(said: str, size: str, most: int) -> UsageError:
    return UsageError(f"{said} is too large: it has {size}, and at most {most / MIB:g} MiB are read.")
