"""The hash by which files count in a recipe, of a model, a LoRA, a picture, and its memory on disk.

Hashing gigabytes takes longer than all else that planning does, so the SHA-256 of a big file is remembered under the
user's cache folder for as long as the file's size, times and inode stay what they were. The memory is disposable: where
it cannot be read or written, the file is hashed again.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from diffopt.errors import UsageError
from diffopt.machine.reading import MIB, opened_file
from diffopt.machine.remembered import recall_answers, remember_answers, remembered_file

BIG = 64 * MIB  # bytes; a smaller file is hashed in less than a tenth of a second
SHA256 = re.compile(r"[0-9a-f]{64}")
MEMORY = "content.json"  # in the user's cache


class Stamp(NamedTuple):
    """What changes when a file does. ctime too: `cp -p` over a file can keep its inode and set any mtime."""

    size: int  # bytes
    mtime_ns: int
    ctime_ns: int
    inode: int


def file_stamp(path: Path) -> Stamp:
    """What tells whether a file is the one that it was. Raises OSError."""
    stat = path.stat()
    return Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, from the memory where it has it. Raises OSError."""
    return _size_and_digest(path)[1]


def sha256_of_opened(file: BinaryIO) -> str:
    """SHA-256 of an open file, from its beginning, never remembered: of the very bytes that are read of it later."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def sha256_of_folder(folder: Path, paths: Iterable[Path]) -> str:
    """SHA-256 over the names within ``folder``, sizes and bytes of files, in the order given.

    Raises UsageError for what is not a file that can be read, such as a link to one that is gone.
    """
    total = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path} is not a file, or a link to one that is gone: the model's folder is not complete")
        try:
            size, digest = _size_and_digest(path)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from None
        total.update(f"{path.relative_to(folder).as_posix()} {size} {digest}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def _size_and_digest(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of one file, the latter from the memory where it has it."""
    stamp = file_stamp(path)
    memory = remembered_file(MEMORY) if stamp.size > BIG else None
    if memory is None:
        return stamp.size, _digest(path, stamp)
    key = str(path.resolve())
    known = _known_digest(recall_answers(memory).get(key), stamp)
    if known is not None:
        return stamp.size, known
    digest = _digest(path, stamp)
    if file_stamp(path) == stamp:  # not written to meanwhile
        entries = {**recall_answers(memory), key: {**stamp._asdict(), "sha256": digest}}
        remember_answers(memory, {place: entry for place, entry in entries.items() if os.path.exists(place)})
    return stamp.size, digest


def _known_digest(entry: Any, stamp: Stamp) -> str | None:
    """The hash in an entry of the memory, if it is one and of the file as it is now."""
    if not isinstance(entry, dict) or {**entry, **stamp._asdict()} != entry:
        return None
    digest = entry.get("sha256")
    return digest if isinstance(digest, str) and SHA256.fullmatch(digest) else None


@functools.cache
def _digest(path: Path, stamp: Stamp) -> str:
    """SHA-256 of a file, once per process and ``stamp``: a sweep may ask for the same file with each of its models."""
    with opened_file(path, str(path)) as file:
        return sha256_of_opened(file)
