"""Every verb with its streams closed, full, or read by nobody: its own exit code, and no traceback.

What a sweep and others do then in detail is in test_streams.py, by whole processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.forked import Answer, Commands
from support.rows import a_cell, a_result

from diffopt.cli.main import VERBS
from diffopt.results.result import Latency, Metrics
from diffopt.results.study import Study

LOST = "diffopt: the output cannot be written: No space left on device\n"
EVERY: dict[str, list[str]] = {  # each verb with a command of its own that says something on stdout
    "run": ["run", "-m", "hardware=a100,t4", "study=new"],
    "plan": ["plan", "-m", "compile=none,default"],
    "check": ["check", "model=tiny", "cache=first_block", "memory=group_offload_stream", "compile=max_autotune"],
    "prefetch": ["prefetch", "model=tiny", "hardware=cpu"],
    "ls": ["ls"],
    "show": ["show", "recipe=pytorch2"],
    "diff": ["diff", "baseline", "pytorch2"],
    "report": ["report", "a"],
    "compare": ["compare", "a", "b", "--slower", "5"],
    "env": ["env"],
    "doctor": ["doctor"],
    "--help": ["plan", "--help"],
    "overview": [],
    "--version": ["--version"],
    "--cfg": ["show", "--cfg", "job"],
    "--info": ["show", "--info", "defaults"],
    "wrong": ["plan", "compile=nope"],
    "unknown": ["nope"],
}
OWN = {"run": 0, "check": 1, "compare": 1, "wrong": 2, "unknown": 2}  # the exit codes that are not 0
STATES = {  # of standard output, and of standard error
    "out closed": ("closed", "read"),
    "err closed": ("read", "closed"),
    "both closed": ("closed", "closed"),
    "out full": ("full", "read"),
    "err full": ("read", "full"),
    "both full": ("full", "full"),
    "out gone": ("gone", "read"),
    "err gone": ("read", "gone"),
    "both gone": ("gone", "gone"),
    "one line": ("first", "read"),
}
FAST = {("check", "out full"), ("prefetch", "err closed"), ("diff", "both gone"), ("--help", "one line")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With two studies; in the second everything takes twice as long."""
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        latency = Latency(samples=(seconds,) * 3, median=seconds, q1=seconds, q3=seconds)
        Study.create(tmp_path / "studies" / name).keep(a_result(a_cell(), metrics=Metrics(latency_s=latency)))
    return tmp_path


def test_every_verb_is_here() -> None:
    assert EVERY.keys() >= VERBS.keys()


def cases() -> Iterator[object]:
    for name in EVERY:
        for state in STATES:
            marks = () if (name, state) in FAST else pytest.mark.slow
            yield pytest.param(name, state, id=f"{name}-{state}", marks=marks)


@pytest.mark.parametrize(("name", "state"), [*cases()])
def test_its_exit_code_is_its_own(name: str, state: str, commands: Commands, folder: Path) -> None:
    out, err = STATES[state]
    env = {"XDG_CACHE_HOME": str(folder / "cache")}
    answer = commands(*EVERY[name], cwd=folder, env=env, out=out, err=err, seconds=300)
    code = healthy(commands, folder, env) if name == "doctor" else OWN.get(name, 0)
    keeps = name in VERBS and VERBS[name].keeps
    wrong = name in ("wrong", "unknown")  # which write nothing to stdout
    assert answer.code == (code or 1 if out == "full" and not keeps and not wrong else code), answer
    assert in_order(answer)
    if out == "full" and err == "read" and not wrong:
        assert answer.err.endswith(LOST)
    if out == "first" and not wrong:
        assert (answer.out.count("\n"), LOST in answer.err) == (1, False)
    if name == "run":
        assert [row.status for row in Study.open(folder / "studies" / "new").results()] == ["refused"] * 2


def in_order(answer: Answer) -> bool:
    return not {word for word in ("Traceback", "Exception ignored", "BrokenPipe") if word in answer.out + answer.err}


_healthy: list[int] = []


def healthy(commands: Commands, folder: Path, env: dict[str, str | None]) -> int:
    """The exit code of a doctor whose words are read."""
    if not _healthy:
        _healthy.append(commands("doctor", cwd=folder, env=env, seconds=300).code)
    return _healthy[0]


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_a_check_that_runs_a_step(state: str, commands: Commands, folder: Path) -> None:
    out, err = STATES[state]
    answer = commands("check", "model=tiny", "layout=channels_last", cwd=folder, out=out, err=err, seconds=300)
    assert answer.code == (1 if out == "full" else 0)
    assert in_order(answer)
