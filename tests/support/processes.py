"""Workers that are no workers, and how to see that a process has ended."""

import sys
import time
from pathlib import Path

from diffopt.recipe.launch import default_launch
from diffopt.run import process

STUB = Path(__file__).with_name("stub_worker.py")


def use_stub(monkeypatch):
    monkeypatch.setattr(
        process, "_command", lambda folder, fd, *rest: [sys.executable, str(STUB), str(folder), str(fd)]
    )


def launch(**deadlines):
    shipped = default_launch()
    changed = shipped.deadlines.model_copy(update=deadlines)
    return shipped.model_copy(update={"grace": 0.3, "deadlines": changed})


def gone(pid, within=2.0):
    """Whether a process that is not ours to reap has ended."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False
