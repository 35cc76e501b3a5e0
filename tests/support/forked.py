"""The real command in a process of its own, in a hundredth of the time: forked from one that has imported it.

What a test of a whole command line may set is set: its streams, its environment, how long it may take. Modes of files
count for it, also where the tests run as root. What a library does when it is imported is done already; a test of that
takes the fixture ``diffopt``.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from resource import struct_rusage
from tempfile import TemporaryFile
from typing import Any, NoReturn, TextIO

from support.places import REPO, TESTS
from support.powers import modes_of_files_count

MODULES = ("main", "plans", "recipes", "reports", "options", "machines", "downloads", "sweeps", "smoke", "hydra_flags")
LIBRARIES = ("PIL.Image", "safetensors", "tokenizers", "numpy", "packaging.requirements")


@dataclass(frozen=True)
class Answer:
    """What became of a command."""

    code: int  # negative: the number of the signal that ended it
    out: str
    err: str
    seconds: float  # of the processor
    memory: int  # MiB at its peak

    @property
    def told(self) -> tuple[int, str, str]:
        return self.code, self.out, self.err


class Commands:
    """A process that has imported diffopt, and forks for each command."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.forked"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{REPO}{os.pathsep}{TESTS}"},
        )

    def close(self) -> None:
        self._process.communicate()

    def __call__(
        self,
        *words: str,
        cwd: Path | str = ".",
        env: dict[str, str | None] | None = None,
        out: str = "read",
        err: str = "read",
        gone: bool = False,
        seconds: float = 120.0,
        before: str = "",
    ) -> Answer:
        """Run ``diffopt WORDS``.

        Args:
            env: variables that are set, and with None unset.
            out: ``read``, ``closed``, ``full``, ``gone`` (its reader), or ``first`` (its reader goes after one line).
            err: likewise.
            gone: the working directory is removed beforehand.
            seconds: after which it is killed; a busy machine takes long.
            before: statements that the process executes first.
        """
        asked = {
            "words": words,
            "cwd": os.path.abspath(cwd),
            "env": {**{name: None for name in os.environ}, **os.environ, **(env or {})},
            "streams": [out, err],
            "gone": gone,
            "seconds": seconds,
            "before": before,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Answer(**json.loads(self._process.stdout.readline()))


def serve() -> None:
    """Answer each line of standard input; the forked process leaves by the ordinary end of the interpreter."""
    for line in sys.stdin:
        asked = json.loads(line)
        with TemporaryFile() as out, TemporaryFile() as err:
            ends = [_ends(kind, file.fileno()) for kind, file in zip(asked["streams"], (out, err), strict=True)]
            begun = time.monotonic()
            if (child := os.fork()) == 0:
                become(asked, [writing for _, writing in ends])
            first = _first_lines(ends)
            status, used = _ended(child, begun + asked["seconds"])
            texts = [file.seek(0) or file.read().decode("utf-8", "replace") for file in (out, err)]
        answer = {
            "code": os.waitstatus_to_exitcode(status),
            "out": first[0] or texts[0],
            "err": first[1] or texts[1],
            "seconds": used.ru_utime + used.ru_stime,
            "memory": used.ru_maxrss // 1024,
        }
        os.write(ANSWERS, (json.dumps(answer) + "\n").encode())


def _ends(kind: str, file: int) -> tuple[int | None, int | None]:
    """Where a stream is read, and where it is written to; None: nowhere."""
    if kind == "closed":
        return None, None
    if kind == "full":
        return None, os.open("/dev/full", os.O_WRONLY)
    if kind == "read":
        return None, os.dup(file)
    reading, writing = os.pipe()
    if kind == "gone":
        os.close(reading)
        return None, writing
    return reading, writing


def _first_lines(ends: list[tuple[int | None, int | None]]) -> list[str]:
    """One line of each stream whose reader wants no more."""
    found = []
    for reading, writing in ends:
        if writing is not None:
            os.close(writing)
        if reading is None:
            found.append("")
            continue
        with open(reading, encoding="utf-8", buffering=1) as stream:
            found.append(stream.readline())
    return found


def _ended(child: int, until: float) -> tuple[int, struct_rusage]:
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            return status, used
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def _stream(number: int, errors: str) -> TextIO:
    """As Python makes it when it starts."""
    raw = open(number, "wb", closefd=False)  # noqa: SIM115
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    return io.TextIOWrapper(raw, encoding=encoding, errors=errors)


def become(asked: dict[str, Any], streams: Sequence[int | None]) -> NoReturn:
    """The command itself, as if it were started from a shell."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update({name: value for name, value in asked["env"].items() if value is not None})
    for number, stream in enumerate(streams, 1):
        if stream is None:
            os.close(number)
        else:
            os.dup2(stream, number)
    for stream in streams:
        if stream is not None and stream > 2:
            os.close(stream)
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)
    for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        stream = None if streams[number - 1] is None else _stream(number, errors)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.close(ANSWERS)
    if asked["gone"]:
        os.rmdir(asked["cwd"])
    sys.argv = ["diffopt", *asked["words"]]
    exec(asked["before"], {})
    from diffopt.cli.main import main

    with modes_of_files_count():
        sys.exit(main())


if __name__ == "__main__":
    for module in MODULES:
        import_module(f"diffopt.cli.{module}")
    for module in LIBRARIES:
        import_module(module)
    ANSWERS = os.dup(1)
    os.set_inheritable(ANSWERS, False)
    serve()
