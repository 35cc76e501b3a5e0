"""A sweep takes every cell to a row; what is kept does not run again; signals end it in order."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from support.places import TESTS
from support.processes import gone, launch, use_stub
from support.rows import a_cell, seeded, stubbed

from diffopt.errors import Interrupted, Refusal, UsageError
from diffopt.machine import nvml
from diffopt.machine.nvml import Device, Gpu
from diffopt.results.result import CompileCache
from diffopt.results.study import Study
from diffopt.run import refused, runner
from diffopt.run.events import CellFinished, CellStarted, PhaseStarted, RowUnreadable, SweepFinished, SweepStarted
from diffopt.run.sweep import run_all, run_one, run_single


@pytest.fixture(autouse=True)
def _stubs_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    use_stub(monkeypatch)


def swept(*modes, study="s", **deadlines):
    events = []
    rows = run_all([stubbed(mode) for mode in modes], study, launch(**deadlines), events.append)
    return rows, events


def test_one_cell_and_what_its_folder_holds():
    row = run_one(stubbed("ok"), study="s", launch=launch())
    assert (row.status, row.valid, row.reason) == ("ok", True, None)
    folder = Study.open("s").folder(row.cell_id, row.env_id)
    assert sorted(p.name for p in folder.iterdir()) == [".claim", "0.png", "cell.yaml", "log.txt", "result.json"]
    assert Study.open("s").results() == (row,)
    assert row.artifacts.pictures == ("0.png",)


def test_without_a_study_it_makes_a_fresh_one(tmp_path):
    run_one(stubbed("ok"))
    run_one(stubbed("ok"))
    assert len(list((tmp_path / "studies").iterdir())) == 2


def test_the_others_go_on():
    rows, _ = swept("exit0", "sigkill", "hang", "garbage_outcome", "error", "ok", compile=0.3)
    assert [row.status for row in rows] == ["crashed", "crashed", "timeout", "crashed", "error", "ok"]
    assert len(Study.open("s").results()) == 6


def test_events_tell_the_story():
    _, events = swept("ok", "exit3")
    cell = stubbed("ok").id
    assert isinstance(events[0], SweepStarted)
    assert events[0].total == 2
    assert [e.phase for e in events if isinstance(e, PhaseStarted) and e.cell_id == cell] == [
        "load",
        "optimize",
        "measure",
    ]
    assert [e.label for e in events if isinstance(e, CellStarted)] == [
        "workload.negative_prompt=ok",
        "workload.negative_prompt=exit3",
    ]
    assert isinstance(events[-1], SweepFinished)
    assert [r.status for r in events[-1].results] == ["ok", "crashed"]


def test_a_second_time_only_what_failed_runs():
    first, _ = swept("ok", "exit3", "error")
    again, events = swept("ok", "exit3", "error")
    assert [e.cell_id for e in events if isinstance(e, CellStarted)] == [first[1].cell_id, first[2].cell_id]
    assert [e.result for e in events if isinstance(e, CellFinished) and e.kept] == [first[0]]
    assert again[0] == first[0]


def test_a_row_that_is_not_valid_is_measured_again():
    (first,), _ = swept("noisy")
    assert (first.status, first.valid, first.final) == ("ok", False, False)
    (again,), events = swept("noisy")
    assert [e.cell_id for e in events if isinstance(e, CellStarted)] == [first.cell_id]
    assert (again.valid, again.final) == (True, True)
    assert Study.open("s").results() == (again,)


def test_anew_measures_also_what_is_final():
    first, _ = swept("ok", "error")
    events = []
    rows = run_all([stubbed("ok"), a_cell("quant=fp8_dynamic")], "s", launch(), events.append, anew=True)
    assert [e.cell_id for e in events if isinstance(e, CellStarted)] == [first[0].cell_id]
    assert not any(isinstance(e, CellFinished) and e.kept for e in events)
    assert [row.status for row in rows] == ["ok", "refused"]


@pytest.mark.parametrize("study", [None, "s"])
def test_a_single_cell_that_is_refused_makes_no_study(tmp_path, monkeypatch, study):
    monkeypatch.setattr(nvml, "detect_gpus", lambda: ())
    for cell, phase in ((a_cell("quant=fp8_dynamic"), "plan"), (on_gpu(stubbed("ok")), "load")):
        events = []
        row, made = run_single(cell, study=study, launch=launch(), listener=events.append)
        assert (row.status, row.phase, made) == ("refused", phase, None)
        assert row == run_one(cell, study=study, launch=launch())
        assert [type(event) for event in events] == [SweepStarted, CellFinished, SweepFinished]
        assert not list(tmp_path.iterdir())


def test_a_single_cell_that_is_refused_is_a_row_of_a_study_that_is_there():
    swept("ok")
    row, made = run_single(a_cell("quant=fp8_dynamic"), study="s", launch=launch())
    assert (made.name, made.row(row.cell_id, row.env_id)) == ("s", row)


def test_notes_are_told_before_anything_runs_and_stand_in_the_row():
    cell = stubbed("ok").model_copy(update={"notes": ("mind this",)})
    workload = cell.workload.model_copy(update={"prompts": ("a", "b")})
    cell = cell.model_copy(update={"workload": workload})
    told = "workload: 2 prompts, but a batch of 1 draws only the first"
    events = []
    for _ in range(2):  # measured, then kept
        (row,) = run_all([cell], "s", launch(), events.append)
        assert row.notes == ("mind this", told)
    assert [event.notes for event in events if isinstance(event, SweepStarted)] == [("mind this", told)] * 2
    assert "notes" not in row.cell
    assert "mind this" not in (Study.open("s").folder(row.cell_id, row.env_id) / "cell.yaml").read_text()


def test_the_same_cell_runs_once_and_is_given_twice():
    rows, events = swept("ok", "ok")
    assert sum(isinstance(e, CellStarted) for e in events) == 1
    assert rows[0] == rows[1]


@pytest.mark.parametrize("text", ['{"schema', '{"schema_version": 1}'])
def test_a_row_that_cannot_be_read_is_measured_anew_and_told(text):
    first, _ = swept("ok", "error")
    path = Study.open("s").folder(first[0].cell_id, first[0].env_id) / "result.json"
    path.write_text(text)
    again, events = swept("ok", "error")
    assert [row.status for row in again] == ["ok", "error"]
    (told,) = [e for e in events if isinstance(e, RowUnreadable)]
    assert told.label == "workload.negative_prompt=ok"
    assert str(path) in told.reason
    assert Study.open("s").row(first[0].cell_id, first[0].env_id) == again[0]


def test_the_folder_of_a_local_model_is_in_the_cell_file_only():
    cell = stubbed("ok")
    model = cell.recipe.model.model_copy(update={"path": "/home/somebody/model"})
    cell = cell.model_copy(update={"recipe": cell.recipe.model_copy(update={"model": model})})
    row = run_one(cell, study="s", launch=launch())
    folder = Study.open("s").folder(row.cell_id, row.env_id)
    assert row.cell["recipe"]["model"]["path"] is None
    assert "somebody" not in (folder / "result.json").read_text()
    assert "path: /home/somebody/model" in (folder / "cell.yaml").read_text()


def test_an_earlier_try_leaves_no_trace():
    (row,), _ = swept("exit3")
    folder = Study.open("s").folder(row.cell_id, row.env_id)
    for name in ("7.png", "outcome.json", ".result.json.1.ab.tmp"):
        (folder / name).write_text("stale")
    swept("exit3")
    assert sorted(p.name for p in folder.iterdir()) == [".claim", "cell.yaml", "log.txt", "result.json"]


def on_gpu(cell):
    """The same cell, declared for an A100; the tests say which GPUs there are."""
    other = a_cell("hardware=a100")
    return cell.model_copy(update={"recipe": cell.recipe.model_copy(update={"hardware": other.recipe.hardware})})


def test_want_of_a_device_is_refused_and_tried_again(monkeypatch):
    monkeypatch.setattr(nvml, "detect_gpus", lambda: ())
    events = []
    for _ in range(2):
        (row,) = run_all([on_gpu(stubbed("ok"))], "s", launch(), events.append)
        assert (row.status, row.phase) == ("refused", "load")
        assert "hardware=a100" in row.reason
    assert not any(isinstance(e, CellFinished) and e.kept for e in events)
    assert row.environment.device == Device(kind="cuda", name=None, memory_bytes=None, gpu=None)


def test_a_broken_driver_is_a_row_and_cells_for_the_cpu_go_on(monkeypatch):
    def detect():
        raise Refusal("this machine's NVIDIA driver does not answer")

    monkeypatch.setattr(nvml, "detect_gpus", detect)
    broken, fine = run_all([on_gpu(stubbed("ok")), stubbed("ok")], "s", launch())
    assert (broken.status, broken.phase) == ("refused", "load")
    assert "does not answer" in broken.reason
    assert fine.status == "ok"


def test_a_gpu_that_cannot_be_read_any_more_is_a_refused_row(monkeypatch):
    def gone(uuid):
        raise Refusal(f"NVML cannot read GPU {uuid}: GPU is lost")

    monkeypatch.setattr(nvml, "detect_gpus", lambda: (Gpu(0, "GPU-0", "NVIDIA A100", 80 * 2**30, (8, 0), "570.1"),))
    monkeypatch.setattr("diffopt.machine.nvml.gpu_device", gone)
    row, fine = run_all([on_gpu(stubbed("ok")), stubbed("ok")], "s", launch())
    assert (row.status, row.phase, row.reason) == ("refused", "load", "NVML cannot read GPU GPU-0: GPU is lost")
    assert row.environment.device.name is None
    assert fine.status == "ok"


def test_a_refused_plan_is_a_row_at_once_with_every_reason_and_is_kept():
    cell = a_cell("quant=fp8_dynamic")
    events = []
    for _ in range(2):
        (row,) = run_all([cell], "s", launch(), events.append)
        assert (row.status, row.phase) == ("refused", "plan")
        assert "quant=fp8_dynamic" in row.reason
    assert not any(isinstance(e, CellStarted) for e in events)
    assert [e.kept for e in events if isinstance(e, CellFinished)] == [False, True]


def test_a_missing_package_is_refused_with_the_remedy_and_tried_again(monkeypatch):
    monkeypatch.setattr(refused.packages, "unmet_packages", lambda texts, there: ("xformers>=0.0.29",))
    row = run_one(stubbed("ok"), study="s", launch=launch())
    assert (row.status, row.phase) == ("refused", "load")
    assert row.reason == "needs xformers>=0.0.29: pip install 'xformers>=0.0.29'"


def test_each_gpu_runs_one_cell_at_a_time_and_the_cpu_comes_last(monkeypatch):
    gpus = tuple(Gpu(i, f"GPU-{i}", "NVIDIA A100-SXM4-80GB", 80 * 2**30, (8, 0), "570.1") for i in range(2))
    monkeypatch.setattr(nvml, "detect_gpus", lambda: gpus)
    described = lambda uuid: Device(kind="cuda", name="NVIDIA A100-SXM4-80GB", memory_bytes=1, gpu=None)  # noqa: E731
    monkeypatch.setattr("diffopt.machine.nvml.gpu_device", described)
    running, most, order = [], [], []

    def work(plan, folder, launch, stop, gpu, on_phase, interpreter, asked):
        assert gpu not in running
        running.append(gpu)
        time.sleep(0.05)
        most.append(sorted(map(str, running)))
        running.remove(gpu)
        order.append(gpu)
        return runner.Verdict("crashed", "load", "a stub")

    monkeypatch.setattr(runner, "run_cell_workers", work)
    cells = [seeded(i) if i < 2 else on_gpu(seeded(i)) for i in range(8)]
    rows = run_all(cells, "s", launch())
    assert [row.cell_id for row in rows] == [cell.id for cell in cells]
    assert ["GPU-0", "GPU-1"] in most
    assert order[-2:] == [None, None]
    assert set(order[:-2]) == {"GPU-0", "GPU-1"}
    assert ["None"] in most
    assert all("None" not in seen or len(seen) == 1 for seen in most)


@pytest.fixture
def terminal():
    """SIGHUP does what it does to a command in a terminal, also where these tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_sweep_with_a_row_for_the_running_cell(number, terminal):
    before = signal.getsignal(number)
    events = []

    def listen(event):
        events.append(event)
        if isinstance(event, PhaseStarted) and event.cell_id == stubbed("hang").id and event.phase == "compile":
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as caught:
        run_all([stubbed(mode) for mode in ("exit0", "hang", "ok")], "s", launch(), listen)
    assert caught.value.signal == number
    assert "the same command with study=s goes on" in str(caught.value)
    assert [row.status for row in events[-1].results] == ["crashed", "interrupted"]
    assert events[-1].asked == 3
    assert {row.status for row in Study.open("s").results()} == {"crashed", "interrupted"}
    assert signal.getsignal(number) is before


def test_nohup_is_heeded(terminal):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def listen(event):
        if isinstance(event, PhaseStarted):
            os.kill(os.getpid(), signal.SIGHUP)

    assert [row.status for row in run_all([stubbed("ok")], "s", launch(), listen)] == ["ok"]
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_nothing_stays_of_what_a_worker_put_into_its_temporary_folder(tmp_path, monkeypatch):
    """A killed worker clears nothing up, and torch's ends without removing what it unpacked."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("DIFFOPT_CACHE_DIR", str(tmp_path / "own"))
    row = run_one(stubbed("litter"), study="s", launch=launch())
    assert row.status == "crashed"
    left, caches = (Study.open("s").folder(row.cell_id, row.env_id) / "log.txt").read_text().split()
    assert Path(left).is_relative_to(place)
    assert list(place.iterdir()) == []
    assert caches == str(tmp_path / "own" / "inductor"), "though what is compiled stays, where it always is"
    assert list((tmp_path / "own" / "aot").iterdir()) == [], "and a package in part is none"
    assert files_of(row) == {".claim", "cell.yaml", "log.txt", "result.json"}


def files_of(row):
    return {path.name for path in Study.open("s").folder(row.cell_id, row.env_id).iterdir()}


def test_what_a_killed_sweep_left_goes_with_the_next_that_has_nothing_to_run(tmp_path, monkeypatch):
    """It was killed after it had written the last row, and before it had tidied up."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    row = run_one(stubbed("ok"), study="s", launch=launch())
    before = files_of(row)
    for name in ("rounds.json", "plan.json", "outcome.json", ".result.json.1.tmp"):
        (Study.open("s").folder(row.cell_id, row.env_id) / name).touch()
    (tmp_path / "diffopt-cell-left0000").mkdir()
    (tmp_path / "diffopt-cell-left0000" / ".owner").touch()
    assert run_one(stubbed("ok"), study="s", launch=launch()) == row
    assert files_of(row) == before
    assert not (tmp_path / "diffopt-cell-left0000").exists()


def test_a_thread_of_a_larger_program_can_run_cells():
    rows = []
    thread = threading.Thread(target=lambda: rows.append(run_one(stubbed("ok"), study="s", launch=launch())))
    thread.start()
    thread.join()
    assert rows[0].status == "ok"


def with_starts(mode):
    cell = stubbed(mode)
    return cell.model_copy(update={"measure": cell.measure.model_copy(update={"starts": True})})


def test_a_cold_and_a_warm_start_come_before_the_measurement():
    row = run_one(with_starts("start"), study="s", launch=launch())
    assert row.status == "ok"
    starts = row.metrics.starts
    assert (starts.cold.compile_cache, starts.warm.compile_cache) == (
        CompileCache(hits=0, misses=1),
        CompileCache(hits=1, misses=0),
    )
    assert row.metrics.compile_cache == CompileCache(hits=2, misses=0)  # the measuring process shares their caches
    (told,) = (Study.open("s").folder(row.cell_id, row.env_id) / "log.txt").read_text().split()
    assert not Path(told).exists()  # and nothing stays of them


def test_a_start_that_fails_is_how_the_cell_ended():
    row = run_one(with_starts("exit3"), study="s", launch=launch())
    assert (row.status, row.metrics.starts) == ("crashed", None)


def test_a_bad_study_is_a_usage_error_before_anything_runs():
    with pytest.raises(UsageError, match="letters, digits"):
        run_one(stubbed("ok"), study="a b", launch=launch())


PARENT = """
import sys
sys.path.insert(0, {tests!r})
from support.rows import stubbed
from diffopt.run import process
from diffopt.run.sweep import run_one
script = "import subprocess, sys, time, os; from pathlib import Path; "
script += "held = subprocess.Popen(['sleep', '600']); "
script += "Path('pids').write_text(str(os.getpid()) + ' ' + str(held.pid)); time.sleep(600)"
process._command = lambda *args: [sys.executable, "-c", script]
run_one(stubbed("ok"), study="s")
"""


def test_no_worker_outlives_a_killed_parent_and_the_next_sweep_clears_up(tmp_path, monkeypatch):
    code = PARENT.format(tests=str(TESTS))
    place = tmp_path / "temporary"
    place.mkdir()
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "TMPDIR": str(place)})
    until = time.monotonic() + 240
    while not (tmp_path / "pids").exists() or not (tmp_path / "pids").read_text():
        assert parent.poll() is None, "the sweep ended before its worker had started"
        assert time.monotonic() < until, "the worker did not start"
        time.sleep(0.05)
    pids = (tmp_path / "pids").read_text().split()
    assert not any(gone(pid, within=0.2) for pid in pids)
    parent.kill()
    parent.wait()
    assert all(gone(pid, within=2.0) for pid in pids)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    assert len(list(place.iterdir())) == 1, "its temporary folder, of which nobody could see the end"
    run_one(stubbed("ok"), study="s", launch=launch())
    assert list(place.iterdir()) == []


def test_no_torch_is_imported_to_run_cells():
    subprocess.run(
        [sys.executable, "-c", "import sys, diffopt.run.sweep; assert 'torch' not in sys.modules"], check=True
    )


def test_the_shipped_launch_is_read_without_hydra(tmp_path):
    code = "import sys; from diffopt.run.sweep import run_all; assert run_all([], 's') == []; assert 'hydra' not in "
    code += "sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
