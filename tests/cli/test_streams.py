"""Whatever becomes of standard output and error, by real processes: a sweep goes on, other verbs say what is lost."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import STUB
from support.rows import a_cell, a_result

from diffopt.results.result import Latency, Metrics
from diffopt.results.study import Study

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
DIFFOPT = [sys.executable, "-m", "diffopt"]
STUBBED = [  # the real command, but for what a worker does
    sys.executable,
    "-c",
    "import sys; from diffopt.run import process; from diffopt.cli.main import main;"
    f"process._command = lambda folder, fd, *rest: [sys.executable, {str(STUB)!r}, str(folder), str(fd)];"
    "sys.exit(main())",
]
SWEEP = ["run", "-m", "hardware=a100,t4,cpu", "workload.seed=0,1", "study=s"]
LOST = "diffopt: the output cannot be written: No space left on device\n"
SLOW = pytest.mark.slow
STATES = ("closed", "full", "gone")


def mostly_slow(*fast: str) -> list[object]:
    """All states; those that are not among ``fast`` are left to the slow run, each being a process or two."""
    return [state if state in fast else pytest.param(state, marks=SLOW) for state in STATES]


def started(
    command: list[str], cwd: Path, *, out: str = "read", err: str = "read", also: str = ""
) -> tuple[int, str, str]:
    """Run it with each stream read, closed, on a full device, or with a reader that has gone away."""
    read, dead = os.pipe()
    os.close(read)
    redirects = {"closed": "{}>&-", "full": "{}>/dev/full", "gone": "{}>&" + str(dead), "read": ""}
    shell = f'exec "$@" {redirects[out].format(1)} {redirects[err].format(2)} {also}'
    try:
        done = subprocess.run(
            ["bash", "-c", shell, "bash", *command], cwd=cwd, capture_output=True, text=True, pass_fds=[dead]
        )
    finally:
        os.close(dead)
    for said in (done.stdout, done.stderr):
        assert "Traceback" not in said
        assert "Exception ignored" not in said
    return done.returncode, done.stdout, done.stderr


def rows(folder: Path) -> list[str]:
    return sorted(row.status for row in Study.open(folder / "studies/s").results())


ALL_ROWS = ["ok", "ok", "refused", "refused", "refused", "refused"]


@pytest.mark.parametrize("state", mostly_slow("closed"))
def test_a_sweep_goes_on_without_its_progress(tmp_path: Path, state: str) -> None:
    code, out, err = started([*STUBBED, *SWEEP, "workload.negative_prompt=ok"], tmp_path, err=state)
    assert rows(tmp_path) == ALL_ROWS
    assert (code, err) == (0, "")
    assert out.count("refused") == 4, "the table is there"


@pytest.mark.parametrize("state", mostly_slow("full"))
def test_a_sweep_goes_on_without_its_table(tmp_path: Path, state: str) -> None:
    code, out, err = started([*STUBBED, *SWEEP, "workload.negative_prompt=ok"], tmp_path, out=state)
    assert rows(tmp_path) == ALL_ROWS
    assert (code, out) == (0, "")
    assert ("6 cells: 4 refused, 2 ok" + "\n" + (LOST if state == "full" else "")) in err
    assert (LOST in err) == (state == "full")


@pytest.mark.parametrize("state", mostly_slow("gone"))
def test_a_sweep_without_either_ends_as_the_sweep_does(tmp_path: Path, state: str) -> None:
    words = [*STUBBED, *SWEEP, "workload.negative_prompt=error"]
    assert started(words, tmp_path, out=state, err=state) == (1, "", "")
    assert rows(tmp_path) == ["error", "error", *ALL_ROWS[2:]]


@SLOW
def test_no_file_of_a_sweep_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    words = [*STUBBED, *SWEEP, "workload.negative_prompt=ok"]
    assert started(words, tmp_path, out="closed", err="closed", also="<&-") == (0, "", "")
    assert rows(tmp_path) == ALL_ROWS


def test_the_first_line_is_all_that_is_read(tmp_path: Path) -> None:
    shell = 'set -o pipefail; "$@" 2>&1 | head -1'
    words = [*STUBBED, *SWEEP, "workload.negative_prompt=ok"]
    done = subprocess.run(["bash", "-c", shell, "bash", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("[1/6] ")
    assert rows(tmp_path) == ALL_ROWS


def test_a_terminal_that_is_closed_while_bars_are_drawn(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    words = [*STUBBED, *SWEEP, "workload.negative_prompt=ok"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        assert os.read(ours, 1)
        os.close(ours)
        assert process.wait(60) == 0
    assert rows(tmp_path) == ALL_ROWS


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two studies; in the second everything takes twice as long."""
    folder = tmp_path_factory.mktemp("studies")
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        latency = Latency(samples=(seconds,) * 3, median=seconds, q1=seconds, q3=seconds)
        Study.create(str(folder / "studies" / name)).keep(a_result(a_cell(), metrics=Metrics(latency_s=latency)))
    return folder


PRODUCTS = {
    "plan": ["plan", "-m", "compile=none,default", "--json"],
    "ls": ["ls", "attention"],
    "show": ["show", "recipe=pytorch2"],
    "report": ["report", "a"],
    "--published": ["report", "--published", "pytorch2"],
    "help": ["plan", "--help"],
    "hydra": ["show", "--cfg", "job"],
}


@pytest.mark.parametrize("state", mostly_slow("full"))
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_verb_whose_product_is_its_output(measured: Path, name: str, state: str) -> None:
    """Nobody who wants it is told nothing; a device that does not take it is an error."""
    found = started([*DIFFOPT, *PRODUCTS[name]], measured, out=state)
    assert found == ((1, "", LOST) if state == "full" else (0, "", ""))


def test_a_reader_who_has_enough(measured: Path) -> None:
    shell = 'set -o pipefail; "$@" | head -1'
    words = ["bash", "-c", shell, "bash", *DIFFOPT, *PRODUCTS["--published"]]
    done = subprocess.run(words, cwd=measured, capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)


@pytest.mark.parametrize("state", mostly_slow())
def test_a_product_does_not_need_standard_error(measured: Path, state: str) -> None:
    code, out, _ = started([*DIFFOPT, *PRODUCTS["show"]], measured, err=state)
    assert (code, out[:1]) == (0, "#")
    assert started([*DIFFOPT, *PRODUCTS["plan"]], measured, out=state, err=state)[0] == int(state == "full")
    assert started([*DIFFOPT, "plan", "compile=nope"], measured, out=state, err=state)[0] == 2


@pytest.mark.parametrize("state", mostly_slow("gone"))
def test_a_gate_fails_also_where_nobody_reads_why(measured: Path, state: str) -> None:
    assert started([*DIFFOPT, "compare", "a", "b", "--slower", "5"], measured, out=state, err=state)[0] == 1


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The exit code of a doctor whose words are read."""
    return started([*DIFFOPT, "doctor"], tmp_path_factory.mktemp("doctor"))[0]


@SLOW
@pytest.mark.parametrize("state", STATES)
def test_doctor(tmp_path: Path, state: str, healthy: int) -> None:
    assert started([*DIFFOPT, "doctor"], tmp_path, out=state)[0] == (1 if state == "full" else healthy)


def test_a_stream_that_does_not_wait_is_waited_for(tmp_path: Path) -> None:
    """A pipe that another program made non-blocking takes everything, in its own time."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    code = "from diffopt.cli.streams import standard_streams\nwith standard_streams(): print('x' * 300_000)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=write, cwd=tmp_path) as process:
        os.close(write)
        with open(read, "rb") as stream:
            assert stream.read() == b"x" * 300_000 + b"\n"
        assert process.wait(60) == 0
