"""What a sweep says: plain lines in a log, bars on a terminal."""

import io

import pytest
from support.rows import a_cell, a_result

from diffopt.cli.progress import progress
from diffopt.results.result import Latency, Metrics
from diffopt.run.events import (
    CellFinished,
    CellStarted,
    NotBegun,
    PhaseStarted,
    RoundFinished,
    RowUnreadable,
    SweepFinished,
    SweepStarted,
    silent_listener,
)

CELL = a_cell().id
FAST = a_result(metrics=Metrics(latency_s=Latency(samples=(1.4, 1.5, 1.6), median=1.5, q1=1.4, q3=1.6)))
NOISY = a_result(valid=False, reason="latency varies by 60.0%")
FAILED = a_result(status="crashed", phase="compile", reason="killed by SIGKILL\nmore", valid=False)

STORY = [
    SweepStarted(3, notes=("two [prompts] and one picture",)),
    RowUnreadable("compile=none", "PATH is not a result. [Again]"),
    CellStarted(CELL, "compile=none"),
    PhaseStarted(CELL, "load"),
    PhaseStarted(CELL, "compile"),
    CellFinished(FAST, "compile=none"),
    CellFinished(NOISY, "[bold]quant=none", kept=True),
    CellFinished(FAILED, "compile=default"),
    SweepFinished((FAST, NOISY, FAILED), asked=4),
]


def told(stream):
    with progress(stream) as listener:
        for event in STORY:
            listener(event)
    return stream.getvalue()


def test_plain_lines():
    assert told(io.StringIO()).splitlines() == [
        "note: two [prompts] and one picture",
        "compile=none: its row is measured anew: PATH is not a result. [Again]",
        f"{CELL} compile=none",
        f"{CELL}   load",
        f"{CELL}   compile",
        "[1/3] compile=none ok 1.500 s ±6.7% (n=3)",
        "[2/3] [bold]quant=none ok, not valid (kept) - latency varies by 60.0%",
        "[3/3] compile=default crashed at compile - killed by SIGKILL",
        "4 cells: 2 ok, 1 crashed, 1 of them not valid, 1 not run",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_time_limit_and_what_it_leaves(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    stream = Terminal() if terminal else io.StringIO()
    with progress(stream) as listener:
        listener(SweepStarted(2, 9.0))
        listener(NotBegun("[x]=1", "not begun, launch.minutes=9: no time was left"))
    assert "cells in 9 minutes" in stream.getvalue()
    assert "[x]=1: not begun, launch.minutes=9: no time was left" in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    text = told(Terminal())
    assert "cells" in text
    assert "━" in text
    assert "compile=none ok 1.500 s" in text
    assert "measured anew: PATH is not a result. [Again]" in text
    assert "[bold]quant=none ok, not valid (kept)" in text
    assert "4 cells: 2 ok, 1 crashed" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_rounds(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    stream = Terminal() if terminal else io.StringIO()
    with progress(stream) as listener:
        listener(SweepStarted(1))
        listener(RoundFinished(CELL, "[x]=1", 1, 3, 0.4125, kept=True))
        listener(CellStarted(CELL, "[x]=1", 2, 3))
        listener(PhaseStarted(CELL, "load"))
        listener(RoundFinished(CELL, "[x]=1", 2, 3, 0.5))
        listener(CellStarted(CELL, "[x]=1", 3, 3))
        listener(PhaseStarted(CELL, "load"))
    told = stream.getvalue()
    assert "[x]=1 round 1 of 3: 0.412 s (kept)" in told
    assert "[x]=1 round 2 of 3: 0.500 s" in told
    assert "[x]=1 round 3 of 3" in told


def test_a_listener_may_say_nothing():
    for event in STORY:
        assert silent_listener(event) is None
