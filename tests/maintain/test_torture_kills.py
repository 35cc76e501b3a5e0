"""A sweep that is killed again and again: nothing is lost, measured twice, unreadable or left."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts.maintain.torture_kills import torture

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="it looks for processes in /proc")]


@pytest.mark.parametrize(("cells", "kills", "odd", "stand_in"), [(24, 15, 8, True), (6, 6, 6, False)])
def test_a_sweep_goes_on_after_each_kill(tmp_path: Path, cells: int, kills: int, odd: int, stand_in: bool) -> None:
    it = torture(tmp_path, cells, kills, odd=odd, stand_in=stand_in, seed=4, minutes=20)
    assert it.study.faults == []
    assert sum(it.struck.values()) == kills
    assert len(it.study.rows) == cells
