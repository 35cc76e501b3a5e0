"""What else the machine does is told by name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from diffopt.machine.others import OtherProcesses, _ticks

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def test_a_busy_process_is_named_and_this_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffopt.machine.others.LEAST", 1e-4)  # however little this machine gives it
    shell = shutil.copy(shutil.which("sh") or "/bin/sh", tmp_path / "spins (a) lot")
    busy = subprocess.Popen([shell, "-c", "while :; do :; done"], start_new_session=True)
    try:
        others, until = OtherProcesses(), time.monotonic() + 60
        while "spins (a) lot" not in (shares := others.shares()) and time.monotonic() < until:
            time.sleep(0.2)
    finally:
        busy.kill()
        busy.wait()
    assert 0 < shares["spins (a) lot"] < 1.5
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert os.getpid() not in {number for _, number, _ in _ticks()}


def test_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    others = OtherProcesses()
    monkeypatch.setattr("os.getloadavg", lambda: (3.14, 0.0, 0.0))
    monkeypatch.setattr(OtherProcesses, "shares", lambda self: {"ffmpeg": 1.94, "rustc": 0.52, "a": 0.3, "b": 0.2})
    pattern = r"the load average was 3.1 on \d+ cores; busy beside it: ffmpeg \(1.9 cores\), rustc \(0.5 cores\), a .*"
    assert re.fullmatch(pattern, others.in_words())
    assert "b (" not in others.in_words()
    monkeypatch.setattr(OtherProcesses, "shares", lambda self: {})
    assert others.in_words().endswith("no other process was busy")


def test_without_proc_the_load_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("diffopt.machine.others.PROC", tmp_path)
    assert OtherProcesses().in_words().startswith("the load average was ")
