"""Another process, supervised: started in a group of its own, heard without spinning, ended with all that it started.

Never imports torch.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal

LONGEST_LINE = 4096  # bytes; what a worker reports of itself is far shorter
END_OF_LOG = 65536  # bytes that are looked at
READ = 65536  # bytes at once, what a pipe of Linux holds

# why there is no further line: the process has gone or closed its reports, took too long, broke off in a line or wrote
# one without end, or the descriptor that is watched became readable
Silence = Literal["ended", "deadline", "garbage", "stopped"]


class Child:
    """A process that leads a group of its own; when this block ends, nothing of the group is left.

    It reports in lines on a descriptor that its command names. Its standard input stays open as long as this process
    lives, so that it can know when it is alone.

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
        self._unfinished = b""
        self._code: int | None = None
        self._reports, write = os.pipe()
        try:
            self._process = subprocess.Popen(
                list(command(write)),
                stdin=subprocess.DEVNULL if plain else subprocess.PIPE,
                stdout=write if plain else log,
                stderr=log,
                pass_fds=() if plain else (write,),
                env=environment,
                start_new_session=True,
            )
        except BaseException:
            os.close(self._reports)
            raise
        finally:
            os.close(write)
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
        """Of the process, and the number of its group."""
        return self._process.pid

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
            self._lines.extend(lines)
            if len(self._unfinished) > self._longest:
                return "garbage"
        return self._lines.popleft()

    def ask_to_end(self, seconds: float) -> None:
        """Send SIGTERM to the group, and wait so long for the process."""
        kill_process_group(self.pid, signal.SIGTERM)
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
            kill_process_group(self.pid, signal.SIGKILL)  # before it is reaped; one that has exited keeps its code
            self._code = self._process.wait()
            if self._process.stdin is not None:
                with suppress(BrokenPipeError):  # an unwritten rest
                    self._process.stdin.close()
            for descriptor in (self._reports, self._exited):
                if descriptor is not None:
                    os.close(descriptor)
        return self._code


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


def last_words_of_log(log: Path) -> str | None:
    """The end of a log, which is often the only witness: of a crash the Python frame, else the last line."""
    with log.open("rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - END_OF_LOG, 0))
        said = [line.strip() for line in file.read().decode("utf-8", "replace").split("\n") if line.strip()]
    crash = next((i for i, line in enumerate(said) if line.endswith("(most recent call first):")), None)
    last = said[crash + 1 : crash + 2] if crash is not None else said[-1:]
    return last[0][:200] if last else None
