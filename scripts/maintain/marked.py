"""The living processes that have a variable in their environment, which whatever they start inherits. Linux alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


class Marked:
    """Processes of this user whose environment has ``name=value``; their number by command."""

    def __init__(self, name: str, value: str) -> None:
        self.variable = {name: value}
        self._mark = f"{name}={value}".encode()

    def processes(self) -> dict[int, str]:
        """All of them, by their number. One that has ended and was not reaped is none: it has no environment."""
        return {pid: _command(pid) for pid in self._pids()}

    def children(self, parent: int) -> list[int]:
        """Those that a process has started into another group than its own."""
        own = self.group(parent)
        return [pid for pid in self.started_by(parent) if self.group(pid) != own and self._is_marked(pid)]

    def started_by(self, parent: int) -> list[int]:
        """All that a process has started, marked or not."""
        return [int(pid) for pid in filter(str.isdigit, os.listdir(PROC)) if _parent_and_group(int(pid))[0] == parent]

    def living(self, pids: Iterable[int]) -> dict[int, str]:
        """Which of these have not ended; one that was not reaped has no command any more."""
        return {pid: command for pid in pids if (command := _command(pid)) not in ("", "?")}

    def group(self, pid: int) -> int:
        """The number of its group."""
        return _parent_and_group(pid)[1]

    def command(self, pid: int) -> str:
        """Its command, or the beginning of it."""
        return _command(pid)

    def of_group(self, group: int) -> dict[int, str]:
        """Those of a group."""
        return {pid: _command(pid) for pid in self._pids() if _parent_and_group(pid)[1] == group}

    def kill(self, pid: int) -> None:
        """Kill one of them alone."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def unused_memory(self, name: str) -> bool:
        """Whether no process has a file of shared memory mapped."""
        for pid in filter(str.isdigit, os.listdir(PROC)):
            with suppress(OSError):
                if f"/dev/shm/{name}" in (PROC / pid / "maps").read_text(errors="replace"):
                    return False
        return True

    def _pids(self) -> Iterator[int]:
        for pid in filter(str.isdigit, os.listdir(PROC)):
            if self._is_marked(int(pid)):
                yield int(pid)

    def _is_marked(self, pid: int) -> bool:
        with suppress(OSError):
            return self._mark in (PROC / str(pid) / "environ").read_bytes().split(b"\0")
        return False


def _parent_and_group(pid: int) -> tuple[int, int]:
    with suppress(OSError, ValueError):
        fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        return int(fields[1]), int(fields[2])
    return 0, 0


def _command(pid: int) -> str:
    with suppress(OSError):
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:600]
    return "?"
