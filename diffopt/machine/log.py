"""The end of what a process has printed, which is often the only witness of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from diffopt.errors import UsageError
from diffopt.machine.reading import opened_file
from diffopt.schema.words import harmless_line, one_line

END_OF_LOG = 65536  # bytes that are looked at


def last_words_of_log(log: Path) -> str | None:
    """The end of a log, which is often the only witness: of a crash the Python frame, else the last line.

    As it may be shown, however large the log is.
    """
    try:
        with opened_file(log, str(log), follow=False) as file:
            said = [line.strip() for line in end_of_log(file).split("\n") if line.strip()]
    except (OSError, UsageError) as error:  # somebody removed it, or put something else there
        return f"(it cannot be read: {one_line(error)})"
    crash = next((i for i, line in enumerate(said) if line.endswith("(most recent call first):")), None)
    last = said[crash + 1 : crash + 2] if crash is not None else said[-1:]
    return harmless_line(last[0][:200]) if last else None


def end_of_log(file: BinaryIO) -> str:
    """The last 64 KiB, so that a log of any size is read at once."""
    file.seek(max(os.fstat(file.fileno()).st_size - END_OF_LOG, 0))
    return file.read(END_OF_LOG).decode("utf-8", errors="replace")
