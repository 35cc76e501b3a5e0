"""What a sweep tells while it runs, and how it is shown: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, get_args

from diffopt.cli.streams import drawing_stream
from diffopt.results.result import Phase, Result
from diffopt.results.spread import samples_in_words, spread_in_words
from diffopt.run.events import (
    CallsStarted,
    CellFinished,
    CellStarted,
    DrawingStarted,
    Event,
    Listener,
    NotBegun,
    PhaseStarted,
    RoundFinished,
    RowUnreadable,
    SweepFinished,
    SweepStarted,
)
from diffopt.schema.words import harmless_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PHASES: tuple[Phase, ...] = get_args(Phase)


def progress_line_of_unreadable_row(event: RowUnreadable) -> str:
    return f"{event.label}: its row is measured anew: {event.reason}"


def progress_line_of_not_begun(event: NotBegun) -> str:
    return f"{event.label}: {event.reason}"


def progress_line_of_outcome(event: CellFinished) -> str:
    """One row in one line: what it is, how it ended, how fast it was or why not."""
    result = event.result
    words = [event.label, result.status_in_words if result.status == "ok" else f"{result.status} at {result.phase}"]
    if (latency := result.metrics.latency_s) is not None:
        words.append(f"{latency.median:.3f} s {spread_in_words(latency)} ({samples_in_words(result)})")
    if result.quality is not None:
        words.append(f"pictures {result.quality.verdict or 'not compared'}")
    if event.kept:
        words.append("(kept)")
    if result.reason:
        words.append(f"- {result.reason.splitlines()[0]}")
    return " ".join(words)


def progress_line_of_round(event: RoundFinished) -> str:
    kept = " (kept)" if event.kept else ""
    return f"{label_in_round(event)}: {event.median_s:.3f} s{kept}"


def label_in_round(event: CellStarted | RoundFinished) -> str:
    """The label of a cell, with the round where it has several."""
    return event.label + (f" round {event.round} of {event.rounds}" if event.rounds > 1 else "")


def progress_line_of_calls(event: CallsStarted) -> str:
    return f"calling once without weights, as the cells would: {event.number} call{'s' * (event.number > 1)}"


def progress_lines_of_end(event: SweepFinished) -> list[str]:
    return [progress_line_of_summary(event), *([] if event.not_kept is None else [event.not_kept])]


def progress_line_of_drawing(event: DrawingStarted) -> str:
    what = "the reference" if event.label == "reference" else f"the reference with another {event.label}, for the floor"
    return f"drawing {what}"


def progress_line_of_summary(event: SweepFinished) -> str:
    counts = Counter(result.status for result in event.results)
    noisy = sum(result.status == "ok" and not result.valid for result in event.results)
    parts = [f"{count} {status}" for status, count in counts.items()]
    parts += [f"{noisy} of them not valid"] if noisy else []
    missing = event.asked - len(event.results)
    parts += [f"{missing} not run"] if missing else []
    return f"{event.asked} cells: {', '.join(parts)}"


@contextmanager
def progress(stream: TextIO | None = None) -> Iterator[Listener]:
    """A listener for a command: bars when ``stream`` (default: standard error) is a terminal, else plain lines."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield _Lines(stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(file=drawing_stream(stream))
    # what else is printed meanwhile goes the way of all output, not through rich, which lets colours pass
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as bars:
        yield _Bars(bars)


class _Lines:
    """One line per event that a log should have."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._total = self._done = 0

    def __call__(self, event: Event) -> None:
        match event:
            case SweepStarted(total, minutes, notes):
                self._total = total
                for note in notes:
                    self._say(f"note: {note}")
                if minutes is not None:
                    self._say(f"{total} cells in {minutes:g} minutes")
            case CallsStarted():
                self._say(progress_line_of_calls(event))
            case DrawingStarted():
                self._say(progress_line_of_drawing(event))
            case RowUnreadable():
                self._say(progress_line_of_unreadable_row(event))
            case NotBegun():
                self._say(progress_line_of_not_begun(event))
            case CellStarted(cell_id, label):
                name = label_in_round(event)
                self._say(f"{cell_id} {name}" if label != cell_id else name)
            case RoundFinished():
                self._say(progress_line_of_round(event))
            case PhaseStarted(cell_id, phase):
                self._say(f"{cell_id}   {phase}")
            case CellFinished():
                self._done += 1
                self._say(f"[{self._done}/{self._total}] {progress_line_of_outcome(event)}")
            case SweepFinished():
                for line in progress_lines_of_end(event):
                    self._say(line)

    def _say(self, text: str) -> None:
        print(harmless_line(text), file=self._stream, flush=True)


class _Bars:
    """One bar for the cells, one for each cell that is running."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._cells: TaskID | None = None
        self._running: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case SweepStarted(total, minutes, notes):
                for note in notes:
                    self._print(f"note: {note}")
                name = "cells" if minutes is None else f"cells in {minutes:g} minutes"
                self._cells = self._bars.add_task(name, total=total)
            case CallsStarted():
                self._print(progress_line_of_calls(event))
            case DrawingStarted():
                self._print(progress_line_of_drawing(event))
            case RowUnreadable():
                self._print(progress_line_of_unreadable_row(event))
            case NotBegun():
                self._print(progress_line_of_not_begun(event))
            case CellStarted(cell_id):
                self._running[cell_id] = self._bars.add_task(harmless_line(label_in_round(event)), total=len(PHASES))
            case PhaseStarted(cell_id, phase):
                self._bars.update(self._running[cell_id], completed=PHASES.index(phase))
            case RoundFinished(cell_id):
                self._end(cell_id)
                self._print(progress_line_of_round(event))
            case CellFinished(result):
                self._finish(event, result)
            case SweepFinished():
                for line in progress_lines_of_end(event):
                    self._print(line)

    def _finish(self, event: CellFinished, result: Result) -> None:
        self._end(result.cell_id)
        if self._cells is not None:
            self._bars.advance(self._cells)
        self._print(progress_line_of_outcome(event))

    def _end(self, cell_id: str) -> None:
        task = self._running.pop(cell_id, None)
        if task is not None:
            self._bars.remove_task(task)

    def _print(self, line: str) -> None:
        self._bars.console.print(harmless_line(line), markup=False, highlight=False, soft_wrap=True)
