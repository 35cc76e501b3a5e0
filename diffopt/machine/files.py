"""Files that appear whole: by a temporary file, fsync and rename."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def file_that_appears_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of ``path`` when the block ends well, and leaves nothing otherwise.

    A reader, or a crash at any moment, sees the old file or the new one, never a part.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(partial, "xb") as file:  # "x": the mode follows the umask, unlike mkstemp's
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
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
