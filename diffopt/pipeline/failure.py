"""What an exception in a worker means for the row: its status, and one paragraph for the user."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import PurePath
from typing import Literal

from diffopt.errors import DiffoptError, NoEffect, Refusal
from diffopt.machine.paths import source_in_words

WITHOUT_VALUES = str(PurePath(__file__).with_name("weightless.py"))  # stands between torch and whoever calls it
LONGEST_REASON = 600  # characters of an exception's text; the whole of it is in the log
OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory"
    r"|CUDA error: out of memory|CUDA_ERROR_OUT_OF_MEMORY|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED",
)
RECOMPILE = re.compile(
    r"Detected recompile .*?filename: '(?P<file>[^']*)', function name: '(?P<name>[^']*)', line number: (?P<line>\d+)",
)


def status_of_pipeline_error(error: BaseException) -> Literal["refused", "oom", "error"]:
    """``oom`` also when a compiler wrapped the exception; ``refused`` for what a step found it cannot do here."""
    if any(_is_out_of_memory(link) for link in _causes(error)):
        return "oom"
    return "refused" if isinstance(error, Refusal) else "error"


def describe_pipeline_error(error: BaseException) -> str:
    """One paragraph: what was being done, what went wrong, and where."""
    doing = "".join(f"{note}: " for note in reversed(getattr(error, "__notes__", [])))
    recompile = RECOMPILE.search(str(error))
    if recompile:
        place = f"{source_in_words(recompile['file'])}:{recompile['line']} in {recompile['name']}"
        return f"{doing}torch.compile recompiled in the timed part, at {place}; the log has the guard that failed."
    if isinstance(error, DiffoptError):
        return doing + (f"no effect: {error}" if isinstance(error, NoEffect) else str(error))
    return f"{doing}{type(error).__name__}: {_first_paragraph(str(error))}{_place_of_error(error)}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _is_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def _first_paragraph(text: str) -> str:
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return paragraph if len(paragraph) <= LONGEST_REASON else f"{paragraph[:LONGEST_REASON]}…"


def _place_of_error(error: BaseException) -> str:
    """The innermost frame outside of torch: what lies inside of it says little about what was asked of it."""
    frames = traceback.extract_tb(error.__traceback__)
    telling = [frame for frame in frames if not (_is_of_torch(frame.filename) or frame.filename == WITHOUT_VALUES)]
    if not telling:
        return ""
    innermost = telling[-1]
    return f" (at {source_in_words(innermost.filename)}:{innermost.lineno} in {innermost.name})"


def _is_of_torch(filename: str) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and PurePath(filename).is_relative_to(PurePath(str(torch.__file__)).parent)
