"""A study that cannot be written, or goes away: a paragraph, exit code 1, and the other cells go on where they can."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from support.places import TESTS
from support.powers import modes_of_files_count
from support.processes import STUB, launch, use_stub
from support.rows import a_cell, stubbed

from diffopt.config.resolve import cell_from_config
from diffopt.errors import Refusal
from diffopt.machine import files, temporary
from diffopt.recipe.cell import Cell
from diffopt.results.result import Result
from diffopt.results.study import Study
from diffopt.run import runner, starts
from diffopt.run.events import CellFinished, CellStarted, Event, SweepFinished
from diffopt.run.process import Verdict
from diffopt.run.row import set_row_aside
from diffopt.run.sweep import run_all, run_one

# the real command, but for what a worker does; without what root alone may do
COMMAND = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from support.powers import modes_of_files_count
from diffopt.cli.main import main
from diffopt.run import process
process._command = lambda folder, fd, *rest: [sys.executable, {str(STUB)!r}, str(folder), str(fd)]
with modes_of_files_count():
    sys.exit(main())
"""
NOBODY = 65534
SLOW = pytest.mark.slow


def command(cwd: Path, *words: str, shell: str = "") -> tuple[int, str, str]:
    line = [sys.executable, "-c", COMMAND, *words]
    done = subprocess.run(["bash", "-c", f'{shell} exec "$@"', "bash", *line], cwd=cwd, capture_output=True, text=True)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def sweep(cwd: Path, *modes: str, shell: str = "", study: str = "s") -> tuple[int, str, str]:
    words = ["run", "-m", "hardware=cpu", "measure=quick", f"workload.negative_prompt={','.join(modes)}"]
    return command(cwd, *words, f"study={study}", shell=shell)


def rows(cwd: Path, study: str = "s") -> dict[str, str]:
    found = Study.open(cwd / "studies" / study).results()
    return {str(row.cell["workload"]["negative_prompt"]): row.status for row in found}


# --- by real processes


def test_a_study_that_is_removed_during_a_sweep(tmp_path: Path) -> None:
    """What was kept is gone, the figures of the cell that ran then are told, and the rest goes on in a new folder."""
    code, out, err = sweep(tmp_path, "ok", "removes_study", "noisy")
    assert code == 1
    assert rows(tmp_path) == {"noisy": "ok"}
    assert "error at measure 7.000 s" in err, "its figures"
    assert "its row is not kept: studies/s/cells/" in err
    said = err.splitlines()[-1]
    assert said.startswith("2 of 3 rows of this sweep are not in the study studies/s. ")
    assert f"{stubbed('ok').id}, {stubbed('removes_study').id}: studies/s/cells/" in said
    assert "No such file or directory. It was removed or renamed while the sweep ran" in said
    assert said.endswith("The other 1 are kept. The same command then measures what has no row.")
    assert out.count("error") >= 2


@pytest.fixture
def measured(tmp_path: Path) -> Iterator[Path]:
    """A study of three rows, two of them refused for want of a device; what is made of it is undone."""
    words = ["run", "-m", "hardware=a100,t4,cpu", "measure=quick", "workload.negative_prompt=ok", "study=s"]
    assert command(tmp_path, *words)[0] == 0
    study = tmp_path / "studies" / "s"
    for claim in study.rglob(".claim"):
        claim.unlink()
    yield study
    subprocess.run(["chattr", "-R", "-i", str(study)], check=False, capture_output=True)
    for path in [study, *study.rglob("*")]:
        path.chmod(0o700)


def read_only(study: Path) -> None:
    for path in [*study.rglob("*"), study]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def of_another_user(study: Path) -> None:
    for path in [*study.rglob("*"), study]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.chown(path, NOBODY, NOBODY)


def immutable(study: Path) -> None:
    if subprocess.run(["chattr", "-R", "+i", str(study)], check=False, capture_output=True).returncode:
        pytest.skip("this file system, or this user, makes nothing immutable")


AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root may")


@pytest.mark.parametrize(
    "lock",
    [
        pytest.param(read_only, marks=SLOW),
        pytest.param(of_another_user, marks=[SLOW, AS_ROOT]),
        pytest.param(immutable, marks=[SLOW, AS_ROOT]),
    ],
)
def test_a_study_that_must_not_be_written_resumes_and_takes_no_other_row(measured: Path, lock) -> None:  # type: ignore[no-untyped-def]
    home = measured.parents[1]
    lock(measured)
    before = {path: path.stat().st_mtime_ns for path in measured.rglob("*")}
    words = ["run", "-m", "hardware=a100,t4,cpu", "measure=quick", "study=s"]
    code, out, err = command(home, *words, "workload.negative_prompt=ok")
    assert (code, err.count("(kept)")) == (0, 3), err
    assert stubbed("ok").id in out
    assert command(home, "report", "s")[0] == command(home, "compare", "s", "s")[0] == 0
    code, out, err = command(home, *words, "workload.negative_prompt=ok,exit3")
    assert (code, err.count("(kept)"), err.count("not measured: ")) == (1, 3, 3)
    said = err.splitlines()[-1]
    assert said.startswith("3 of 6 rows of this sweep are not in the study studies/s. ")
    assert "Permission denied. Make the study writable" in said or "not permitted. Make the study writable" in said
    assert "The other 3 are kept." in said
    assert command(home, *words, "workload.negative_prompt=ok", "--force")[0] == 1
    assert {path: path.stat().st_mtime_ns for path in measured.rglob("*")} == before


def test_a_read_only_study_that_has_all_rows_needs_no_claim(here: Path) -> None:
    first, _ = swept([stubbed("ok"), a_cell("quant=fp8_dynamic")])
    study = here / "studies" / "s"
    for claim in study.rglob(".claim"):
        claim.unlink()
    read_only(study)
    try:
        with modes_of_files_count():
            again, events = swept([stubbed("ok"), a_cell("quant=fp8_dynamic")])
            assert again == first
            assert [event.kept for event in events if isinstance(event, CellFinished)] == [True, True]
            found, _ = swept([stubbed("ok"), stubbed("error")])
        assert [row.status for row in found] == ["ok", "error"]
        assert "Permission denied" in str(found[1].reason)
    finally:
        for path in [study, *study.rglob("*")]:
            path.chmod(0o700)


@SLOW
@AS_ROOT
def test_a_study_that_must_not_be_read(measured: Path) -> None:
    of_another_user(measured)
    measured.chmod(0o700)
    home = measured.parents[1]
    for words in (["report", "s"], ["compare", "s", "s"], ["run", "-m", "hardware=cpu", "study=s"]):
        code, out, err = command(home, *words)
        assert (code, out, err.count("\n")) == (1, "", 1), err
        assert "studies/s" in err
        assert "Permission denied" in err
    measured.chmod(0o755)
    (closed,) = (measured / "cells" / stubbed("ok").id).iterdir()
    closed.chmod(0o700)
    code, out, err = command(home, "report", "s")
    assert (code, f"left out: studies/s/cells/{stubbed('ok').id}" in err) == (0, True)
    code, out, err = sweep(home, "ok")
    assert (code, f"studies/s/cells/{stubbed('ok').id}" in err.splitlines()[-1]) == (1, True)


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """What is too large is a row or a paragraph; what is small enough goes on."""
    code, out, err = sweep(tmp_path, "verbose", "error", shell="ulimit -f 64;")
    assert (code, rows(tmp_path)) == (1, {"verbose": "crashed", "error": "error"})
    (log,) = [path for path in tmp_path.rglob("log.txt") if path.stat().st_size]
    assert log.stat().st_size == 64 * 1024


@SLOW
def test_a_limit_that_no_row_fits(tmp_path: Path) -> None:
    code, out, err = sweep(tmp_path, "ok", "error", shell="ulimit -f 1;")
    assert (code, rows(tmp_path)) == (1, {})
    said = err.splitlines()[-1]
    assert said.startswith("2 of 2 rows of this sweep are not in the study studies/s. ")
    assert "File too large. Allow larger files (ulimit -f unlimited)." in said
    assert "None is kept." in said
    assert not list(tmp_path.rglob(".*.tmp"))


# --- in this process, where the disk is full for some files


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    use_stub(monkeypatch)
    return tmp_path


class Full:
    """A disk that takes no file of these names in the folder of a cell."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: set[tuple[str, str]] = set()
        self._made = files._made
        monkeypatch.setattr(files, "_made", self)

    def __call__(self, path: Path) -> object:
        for cell_id, name in self.names:
            if path.name.startswith((name, f".{name}.")) and cell_id in path.parts:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return self._made(path)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Full:
    return Full(monkeypatch)


def swept(cells: Sequence[Cell], **how: bool) -> tuple[list[Result], list[Event]]:
    events: list[Event] = []
    return run_all(cells, "s", launch(), events.append, **how), events


def in_rounds(mode: str) -> Cell:
    data = stubbed(mode).model_dump(mode="json")
    data["measure"]["rounds"] = 2
    return cell_from_config(data)


@pytest.mark.parametrize("name", ["result.json", "cell.yaml", "log.txt"])
def test_a_full_disk_costs_the_row_of_that_cell(here: Path, full: Full, name: str) -> None:
    cells = [stubbed("ok"), stubbed("error"), stubbed("noisy")]
    full.names = {(cells[0].id, name)}
    found, events = swept(cells)
    assert [row.status for row in found] == ["error", "error", "ok"]
    assert set(rows(here)) == {"error", "noisy"}
    latency = found[0].metrics.latency_s
    assert (latency is not None and latency.median == 1.0) == (name == "result.json")
    reason = found[0].reason or ""
    assert reason.startswith("its row is not kept: " if name == "result.json" else "not measured: ")
    assert f"{name}: No space left on device" in reason
    assert [event.result for event in events if isinstance(event, CellFinished)] == found
    (end,) = [event for event in events if isinstance(event, SweepFinished)]
    assert str(end.not_kept).startswith(f"1 of 3 rows of this sweep are not in the study studies/s. {cells[0].id}: ")
    assert "No space left on device. Make room on that disk" in str(end.not_kept)
    full.names = set()
    again, events = swept(cells[:1])
    assert [row.status for row in again] == ["ok"]
    assert events[-1] == SweepFinished(tuple(again), asked=1)


@pytest.mark.parametrize("name", ["cell.yaml", "log.txt", "result.json"])
def test_a_row_that_is_measured_anew_in_vain_stays(here: Path, full: Full, name: str) -> None:
    (first,), _ = swept([stubbed("ok")])
    full.names = {(first.cell_id, name)}
    (row,), _ = swept([stubbed("ok")], anew=True)
    assert row.status == "error"
    assert Study.open("s").results() == (first,)
    full.names = set()
    (row,), events = swept([stubbed("ok")])
    assert [event.kept for event in events if isinstance(event, CellFinished)] == [True]


def raises(error: Exception) -> Callable[..., Verdict]:
    def fail(*arguments: object, **more: object) -> Verdict:
        raise error

    return fail


def test_a_row_stays_where_there_is_no_room_for_temporary_files(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,), _ = swept([stubbed("ok")])
    monkeypatch.setattr(temporary.tempfile, "mkdtemp", raises(OSError(errno.ENOSPC, "No space left on device")))
    found, _ = swept([stubbed("ok"), stubbed("noisy")], anew=True)
    assert [row.status for row in found] == ["error", "error"]
    assert "No space left on device. Name another: TMPDIR=/a/folder" in (found[0].reason or "")
    assert Study.open("s").results() == (first,)


def test_a_refusal_meanwhile_concerns_its_cell(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [stubbed("ok"), stubbed("noisy")]
    real = starts.compile_caches_of_user

    def once() -> dict[str, str]:
        monkeypatch.setattr(starts, "compile_caches_of_user", real)
        raise Refusal("the compile cache is anybody's")

    monkeypatch.setattr(starts, "compile_caches_of_user", once)
    found, _ = swept(cells)
    assert [row.status for row in found] == ["error", "ok"]
    assert "not measured: the compile cache is anybody's" in (found[0].reason or "")


def test_a_row_that_is_interrupted_while_it_is_measured_anew_stays(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,), _ = swept([stubbed("ok")])
    ended = Verdict("interrupted", "measure", "interrupted while it ran")
    monkeypatch.setattr(runner, "run_cell_workers", lambda *arguments: ended)
    (row,), _ = swept([stubbed("ok")], anew=True)
    assert row.status == "interrupted"
    assert Study.open("s").results() == (first,)


def test_a_row_that_a_killed_process_had_set_aside_is_there_again(here: Path) -> None:
    (first,), _ = swept([stubbed("ok")])
    folder = Study.open("s").folder(first.cell_id, first.env_id)
    set_row_aside(folder)
    assert Study.open("s").results() == ()
    (row,), events = swept([stubbed("ok")])
    assert row.metrics == first.metrics
    assert [event.kept for event in events if isinstance(event, CellFinished)] == [True]
    assert not list(folder.glob("*.earlier"))


@pytest.mark.parametrize("name", ["rounds.json", "result.json"])
def test_rounds_that_cannot_be_kept_are_told_with_their_figures(here: Path, full: Full, name: str) -> None:
    cells = [in_rounds("rounds"), in_rounds("slowed")]
    full.names = {(cells[0].id, name)}
    (lost, _), events = swept(cells)
    assert lost.status == "error"
    assert lost.metrics.latency_s is not None
    assert lost.metrics.latency_s.samples == ((1.0, 1.5) if name == "rounds.json" else (1.0, 1.5, 2.0, 2.5))
    assert set(rows(here)) == {"slowed"}
    begun = [event.round for event in events if isinstance(event, CellStarted) and event.cell_id == cells[0].id]
    assert begun == ([1] if name == "rounds.json" else [1, 2])


def test_a_refusal_that_cannot_be_kept_is_an_error(here: Path, full: Full) -> None:
    cell = a_cell("quant=fp8_dynamic")
    full.names = {(cell.id, "result.json")}
    row = run_one(cell, study=Study.create("s"), launch=launch())
    assert row.status == "error"
    assert "quant=fp8_dynamic" in str(row.reason)
    assert "its row is not kept: " in str(row.reason)


def test_many_rows_are_counted_and_each_trouble_is_named_once(here: Path, full: Full) -> None:
    data = stubbed("ok").model_dump(mode="json")
    cells = []
    for seed in range(9):
        data["workload"]["seed"] = seed
        cells.append(cell_from_config(data))
    full.names = {(cell.id, "cell.yaml") for cell in cells[:8]}
    folder = Study.create("s").path / "cells" / cells[8].id
    folder.write_text("a file where a folder belongs")
    _, events = swept(cells)
    said = str(events[-1].not_kept) if isinstance(events[-1], SweepFinished) else ""
    assert said.startswith(f"9 of 9 rows of this sweep are not in the study studies/s. {cells[0].id}, ")
    assert f"{cells[5].id} and 2 more: studies/s/cells/{cells[0].id}/" in said
    assert said.count("No space left on device") == said.count("File exists") == 1
    assert "None is kept." in said


def test_a_worker_that_cannot_be_started_is_a_row(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffopt.run import process

    monkeypatch.setattr(process, "_command", lambda *rest: [str(here / "gone"), "-c", "pass"])
    row = run_one(stubbed("ok"), study="s", launch=launch())
    assert (row.status, row.phase) == ("crashed", "load")
    assert row.reason == f"the worker cannot be started: {here}/gone: No such file or directory"
    assert Study.open("s").results() == (row,)


def test_a_study_can_be_left_and_taken_up_elsewhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole working directory may go."""
    (here / "w").mkdir()
    monkeypatch.chdir(here / "w")

    def listen(event: Event) -> None:
        if isinstance(event, CellStarted) and event.cell_id == stubbed("ok").id:
            shutil.rmtree(here / "w")

    found = run_all([stubbed("ok"), stubbed("error")], "s", launch(), listen)
    assert [row.status for row in found] == ["error", "error"]
    assert "No such file or directory" in str(found[1].reason)
    with modes_of_files_count():
        assert not (here / "w").exists()
