"""What happens in a sweep, as it is told to whoever listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from diffopt.results.result import Phase, Result


@dataclass(frozen=True)
class SweepStarted:
    total: int  # cells
    minutes: float | None = None  # that it may take
    notes: tuple[str, ...] = ()  # on its cells, each once


@dataclass(frozen=True)
class CallsStarted:
    """Before a sweep starts: pipelines that are told by their own files are called without weights, in a process."""

    number: int


@dataclass(frozen=True)
class CellStarted:
    """A worker is about to be started; refused and kept cells have no such event."""

    cell_id: str
    label: str  # the options that lead to the cell, as on the command line
    round: int = 1
    rounds: int = 1  # of this cell


@dataclass(frozen=True)
class DrawingStarted:
    """Pictures that cells are compared with are about to be drawn, by a process of their own."""

    label: str  # reference, or what is changed of it


@dataclass(frozen=True)
class RowUnreadable:
    """The study has a row of the cell that cannot be read: it is replaced."""

    label: str
    reason: str


@dataclass(frozen=True)
class NotBegun:
    """There is no time for a cell that has an earlier row, which stays."""

    label: str
    reason: str


@dataclass(frozen=True)
class PhaseStarted:
    cell_id: str
    phase: Phase


@dataclass(frozen=True)
class RoundFinished:
    """A round of a cell has ended well, and others are to come: there is no row yet."""

    cell_id: str
    label: str
    round: int
    rounds: int
    median_s: float  # of its own samples
    kept: bool = False  # an earlier sweep measured it, nothing ran


@dataclass(frozen=True)
class CellFinished:
    result: Result
    label: str
    kept: bool = False  # the row was there already, nothing ran


@dataclass(frozen=True)
class SweepFinished:
    results: tuple[Result, ...] = field(repr=False)
    asked: int  # cells; more than results when the sweep was interrupted
    not_kept: str | None = None  # of the rows, by which trouble, and what to do: a paragraph; None: all are kept


Event = (
    CallsStarted
    | SweepStarted
    | RowUnreadable
    | NotBegun
    | CellStarted
    | DrawingStarted
    | PhaseStarted
    | RoundFinished
    | CellFinished
    | SweepFinished
)
Listener = Callable[[Event], None]


def silent_listener(event: Event) -> None:
    """The listener of callers in Python that give none."""
