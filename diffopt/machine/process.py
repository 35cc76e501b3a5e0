"""Another process, supervised: started in a group of its own, heard without spinning, ended with all that it started.

Never imports torch.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import BinaryIO, Literal

from diffopt.machine.log import end_of_log
from diffopt.machine.temporary import place_of_temporary_files

LONGEST_LINE = 4096  # bytes; what a worker reports of itself is far shorter
READ = 65536  # bytes at once, what a pipe of Linux holds

# why there is no further line: the process has gone or closed its reports, took too long, broke off in a line or wrote
# one without end, or the descriptor that is watched became readable
Silence = Literal["ended", "deadline", "garbage", "stopped"]

# leads the group and does nothing, until its standard input ends: then it kills the group, and so itself
KEEPER = ("/bin/sh", "-c", "trap '' HUP INT TERM; read -r _; kill -KILL 0")


class Child:
    """A process in a group of its own; when this block ends, nothing of the group is left.

    Nor is it when this process is killed, at whatever moment, whether the child lives, holds Python's lock in C or has
    ended and left others: the group is led by a shell that waits for the end of a pipe, which this process alone keeps
    open. It is there before the child, and what ends the child alone leaves it; see also :func:`_bind_group_to_pipe`.
    What has left the group (``setsid``) is beyond all that.

    It reports in lines on a descriptor that its command names. Its standard input is a pipe for :meth:`tell`.

    Args:
        command: gives the command for a descriptor to report on.
        log: takes what it prints, on standard output and on standard error.
        environment: its environment variables, all of them.
        plain: whether it knows nothing of all this: what it prints is its report, ``log`` takes its complaints alone,
            and its standard input is empty.
        watched: a descriptor that ends the waiting for a line when it becomes readable.
        longest: bytes that a line may have.

    Raises:
        OSError: the system cannot start it.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        log: BinaryIO,
        environment: Mapping[str, str],
        *,
        plain: bool = False,
        watched: int | None = None,
        longest: int = LONGEST_LINE,
    ) -> None:
        self._watched, self._longest = watched, longest
        self._lines: deque[bytes] = deque()
        self._unfinished, self._garbled = b"", False
        self._code: int | None = None
        self._reports, write = os.pipe()
        lifeline, self._alive = os.pipe()  # nothing is ever written to it; it breaks when this process ends
        try:
            self._keeper = _start_keeper(lifeline)
            self._process = subprocess.Popen(
                list(command(write)),
                stdin=subprocess.DEVNULL if plain else subprocess.PIPE,
                stdout=write if plain else log,
                stderr=log,
                pass_fds=(lifeline,) if plain else (lifeline, write),
                env=environment,
                process_group=self.group,
            )
        except BaseException:
            os.close(self._reports)
            os.close(self._alive)
            if hasattr(self, "_keeper"):
                kill_process_group(self.group, signal.SIGKILL)  # a fork of this process may hold the pipe, too
                self._keeper.wait()
            raise
        finally:
            os.close(write)
            os.close(lifeline)
        self._exited: int | None = None  # becomes readable when the process exits; stays None but on Linux
        try:
            self._exited = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else None
        except OSError:
            self.end()
            raise

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def group(self) -> int:
        """The number of its group."""
        return self._keeper.pid

    def tell(self, line: bytes) -> None:
        """Write a line to its standard input. Nothing happens where it has gone: there is no next line of it, then."""
        assert self._process.stdin is not None, "it is not plain"
        with suppress(BrokenPipeError):
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()

    def line(self, deadline: float) -> bytes | Silence:
        """The next line that it reports, without its end; else why there is none.

        Args:
            deadline: on the clock of ``time.monotonic``.
        """
        while not self._lines:
            if self._garbled:
                return "garbage"
            ready = _readable((self._reports, self._exited, self._watched), max(0.0, deadline - time.monotonic()))
            if not ready:
                return "deadline"
            if self._watched in ready:
                return "stopped"
            if self._reports not in ready:
                return "ended"  # the process has gone, and something that it left holds the descriptor
            chunk = os.read(self._reports, READ)
            if not chunk:
                return "garbage" if self._unfinished else "ended"
            *lines, self._unfinished = (self._unfinished + chunk).split(b"\n")
            fine = list(itertools.takewhile(lambda line: len(line) <= self._longest, lines))
            self._lines.extend(fine)
            self._garbled = len(fine) < len(lines) or len(self._unfinished) > self._longest
        return self._lines.popleft()

    def ask_to_end(self, seconds: float) -> None:
        """Send SIGTERM to the group, and wait so long for the process."""
        kill_process_group(self.group, signal.SIGTERM)
        self.await_exit(seconds)

    def await_exit(self, seconds: float) -> None:
        """Wait so long for the process to exit, without reaping it: its group's number stays its own."""
        if self._exited is None:
            time.sleep(min(seconds, 1.0))
        else:
            _readable((self._exited,), seconds)

    def end(self) -> int:
        """Kill what is left of the group; the exit code of the process, negative after a signal."""
        if self._code is None:
            kill_process_group(self.group, signal.SIGKILL)  # before it is reaped; one that has exited keeps its code
            self._code = self._process.wait()
            self._keeper.wait()
            if self._process.stdin is not None:
                with suppress(BrokenPipeError):  # an unwritten rest
                    self._process.stdin.close()
            for descriptor in (self._reports, self._exited, self._alive):
                if descriptor is not None:
                    os.close(descriptor)
        return self._code


def lines_of_program(
    command: Sequence[str],
    environment: Mapping[str, str],
    seconds: float,
    *,
    longest: int = LONGEST_LINE,
    whole: bool = False,
) -> tuple[list[bytes], list[str]]:
    """The lines that a program prints and those that it complains with; nothing of it is left running.

    Args:
        whole: what it prints counts only where it ends well and no line is too long.
    """
    deadline = time.monotonic() + seconds
    said: list[bytes] = []
    with tempfile.TemporaryFile(dir=place_of_temporary_files()) as log:
        try:
            child = Child(lambda _: command, log, environment, plain=True, longest=longest)
        except OSError as error:
            return [], [error.strerror or str(error)]
        with child:
            while isinstance(line := child.line(deadline), bytes):
                said.append(line)
            if whole:
                child.await_exit(max(0.0, deadline - time.monotonic()))
        if line == "deadline":
            return [], [f"it did not answer within {seconds:g} s"]
        complaint = end_of_log(log).splitlines()
    if whole and (line == "garbage" or child.end() != 0):
        said = []
    return said, [line for line in complaint if line.strip()]


def _start_keeper(lifeline: int) -> subprocess.Popen[bytes]:
    """The shell that leads a group, and kills it when the pipe breaks that it waits for."""
    none = subprocess.DEVNULL
    keeper = subprocess.Popen(KEEPER, stdin=lifeline, stdout=none, stderr=none, env={}, process_group=0)
    with suppress(OSError):  # where the kernel has no such signals, there is the shell alone
        _bind_group_to_pipe(keeper.pid, lifeline)
    return keeper


def _bind_group_to_pipe(group: int, end: int) -> None:
    """Let the kernel kill the group when the pipe loses its last writer, as long as some process holds this end.

    Asynchronous I/O with SIGKILL for its signal: it also comes where the shell that leads the group was killed, and to
    a child that holds Python's lock. PR_SET_PDEATHSIG would reach the child alone, not what it started, and would also
    come when only the thread ends that started it. Elsewhere than on Linux there is the shell alone.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(end, fcntl.F_SETOWN, -group)
        fcntl.fcntl(end, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | os.O_ASYNC)


def _readable(descriptors: Sequence[int | None], seconds: float) -> set[int | None]:
    with selectors.DefaultSelector() as selector:
        for descriptor in descriptors:
            if descriptor is not None:
                selector.register(descriptor, selectors.EVENT_READ)
        return {key.fd for key, _ in selector.select(seconds)}


def kill_process_group(group: int, signum: signal.Signals) -> None:
    """Send a signal to all processes of a group; to none where it is empty."""
    with suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS says so of a group of zombies
        os.killpg(group, signum)


def how_process_ended(code: int) -> str:
    """An exit code of a process in words, after its name."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
