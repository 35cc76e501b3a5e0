"""Standard output and error that never fail and obey nobody: what cannot be written is dropped, what a terminal would
obey is shown as its escape, and whoever asks is told what was lost.

Files of anybody's are shown: rows, options, prompts, names of LoRAs. What a table, an error, a warning or a library
prints of them goes through here. Whoever draws on a terminal takes :func:`drawing_stream`.

Whoever reads may go away (``| head``), a stream may be closed from the start, a disk be full, a terminal be hung up.
None of it may end a sweep, and it comes up wherever anything is written: in a print, a bar's thread, a warning, a
logger, the interpreter's last flush. So it is dealt with below them all, where bytes go to the descriptor.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, TypeGuard, cast

from diffopt.schema.words import harmless, harmless_line

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


@contextmanager
def standard_streams() -> Iterator[Callable[[], OSError | None]]:
    """Make both streams such while this lasts; gives a function that tells why some output was lost.

    Its answer is None also where nobody wanted the rest: where stdout was closed, or its reader went away. Signs that
    a terminal cannot show are written as their escapes. Streams of somebody else's making may fail as they do.
    """
    _occupy_descriptors()
    before = sys.stdout, sys.stderr
    out, stdout = _lasting(sys.stdout)
    _, stderr = _lasting(sys.stderr)
    sys.stdout, sys.stderr = (cast(TextIO, _Harmless(stream)) for stream in (stdout, stderr))

    def reason_of_loss() -> OSError | None:
        sys.stdout.flush()
        return out.lost if out is not None and out.lost is not None and out.lost.errno != errno.EPIPE else None

    try:
        yield reason_of_loss
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def drawing_stream(stream: TextIO) -> TextIO:
    """The stream as a terminal has it, for what moves its cursor and colours it, and shows harmless text only."""
    return stream.stream if isinstance(stream, _Harmless) else stream


def print_line(text: str, *, to_stderr: bool = False) -> None:
    """One line at once, whatever is in it."""
    print(harmless_line(text), file=sys.stderr if to_stderr else sys.stdout, flush=True)


def can_be_shown(text: str) -> bool:
    """Whether standard output has every sign of a text; it writes the others as their escapes."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def say(text: str) -> None:
    """One paragraph beside the product of a verb: an error, or what was left out of it."""
    print_line(f"diffopt: {text}", to_stderr=True)


class _Harmless:
    """A stream, but for what a terminal would obey."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(harmless(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _occupy_descriptors() -> None:
    """Where 0, 1 or 2 is closed, the next file to be opened would be standard output, and mixed up in every child."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one


def _lasting(stream: TextIO | None) -> tuple[_Lasting | None, TextIO]:
    """The same stream, made anew upon its descriptor; None, as Python has it for a closed one, takes everything."""
    if stream is None:
        nowhere = _Lasting(os.open(os.devnull, os.O_WRONLY), "w", closefd=False)
        return None, io.TextIOWrapper(io.BufferedWriter(nowhere), encoding="utf-8", errors="backslashreplace")
    if not _is_a_file(stream):
        return None, stream
    stream.flush()
    raw = _Lasting(stream.fileno(), "w", closefd=False)
    return raw, io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),  # type: ignore[arg-type]  # python -u has it so
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _is_a_file(stream: TextIO) -> TypeGuard[io.TextIOWrapper]:
    if not isinstance(stream, io.TextIOWrapper):
        return False
    return isinstance(getattr(stream.buffer, "raw", stream.buffer), io.FileIO)


class _Lasting(io.FileIO):
    """A file whose writes always succeed; ``lost`` says why the first that did not was dropped."""

    lost: OSError | None = None

    def write(self, data: ReadableBuffer) -> int:
        rest = memoryview(data).cast("B")
        try:
            while rest:
                written = super().write(rest)
                if written is None:  # somebody made it non-blocking, and it is full
                    select.select([], [self], [])
                else:
                    rest = rest[written:]
        except OSError as error:
            self.lost = self.lost or error
        return memoryview(data).nbytes
