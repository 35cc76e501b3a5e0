"""What a sweep of many cells does grows as they do: counted in calls, which no busy machine changes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support.processes import launch
from support.rows import seeded

from diffopt.results.result import Latency, Metrics, Outcome
from diffopt.results.study import Study
from diffopt.results.table import results_table
from diffopt.run import runner
from diffopt.run.process import Verdict
from diffopt.run.sweep import run_all

METRICS = Metrics(latency_s=Latency(samples=(1.0,), median=1.0, q1=1.0, q3=1.0))
OK = Verdict("ok", "measure", None, Outcome(status="ok", phase="measure", valid=True, metrics=METRICS))
SLACK = 1.15  # what is done once makes it less than in proportion, so that this is nearly all for the rest


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield lambda: calls
    finally:
        sys.setprofile(before)


def work_of_sweep(count: int, minutes: float | None) -> int:
    """Calls to measure so many cells, to go on with the study, to read it and to show it."""
    cells = [seeded(seed) for seed in range(count)]
    how = launch().model_copy(update={"minutes": minutes})
    with counted() as calls:
        for _ in range(2):
            assert {row.status for row in run_all(cells, f"s{count}", how)} == {"ok"}
        found = Study.open(f"s{count}").results()
        assert len(results_table(found).rows) == count
        return calls()


@pytest.mark.parametrize("minutes", [None, 600.0])
@pytest.mark.slow
@pytest.mark.parametrize("count", [25, 100])
def test_four_times_the_cells_are_four_times_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, minutes: float | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "run_cell_workers", lambda *rest: OK)
    work_of_sweep(2, minutes)  # what is remembered of the first
    once, more = work_of_sweep(count, minutes), work_of_sweep(4 * count, minutes)
    assert more < 4 * once * SLACK
