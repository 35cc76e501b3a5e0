"""What else a machine does while something is measured: its load, and which other processes are busy, by name."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

LEAST = 0.1  # of one core, below which a process is not worth a word
MOST = 3  # names that are told
SHORTEST = 0.1  # s, ten ticks: over less than that a share says nothing
PROC = Path("/proc")


class OtherProcesses:
    """Watches the processes of other process groups from where this is made. Nothing runs meanwhile: it looks twice.

    Where the system has no ``/proc``, only the load average is told.
    """

    def __init__(self) -> None:
        self._before, self._begin = _ticks(), time.monotonic()

    def shares(self) -> dict[str, float]:
        """Cores that processes of each name have used since, the busiest first; those that have ended are not seen."""
        seconds = max(time.monotonic() - self._begin, SHORTEST)
        used = Counter[str]()
        for process, ticks in _ticks().items():
            used[process[0]] += ticks - self._before.get(process, 0)
        shares = {name: ticks / os.sysconf("SC_CLK_TCK") / seconds for name, ticks in used.most_common()}
        return {name: share for name, share in shares.items() if share >= LEAST}

    def in_words(self) -> str:
        """Such as "the load average was 3.1 on 2 cores; busy beside it: ffmpeg (1.9 cores)"."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        said = f"the load average was {os.getloadavg()[0]:.1f} on {cores} cores"
        busy = [f"{name} ({share:.1f} cores)" for name, share in list(self.shares().items())[:MOST]]
        return f"{said}; busy beside it: {', '.join(busy)}" if busy else f"{said}, no other process was busy"


def _ticks() -> dict[tuple[str, int, int], int]:
    """Clock ticks that each process of another group has had, by its name, its number and when it began."""
    found = {}
    for file in PROC.glob("[0-9]*/stat"):
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has ended
            continue
        name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
        if int(rest[2]) != os.getpgrp():
            found[name, int(file.parent.name), int(rest[19])] = int(rest[11]) + int(rest[12])
    return found
