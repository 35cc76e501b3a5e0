"""``launch.minutes``: what does not fit is not begun, what does not end is stopped in time, and both go on later."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.processes import gone, launch, use_stub
from support.rows import a_cell, a_result, seeded, stubbed

from diffopt.config.resolve import cell_from_config
from diffopt.errors import Interrupted
from diffopt.machine import nvml
from diffopt.machine.environment import detect_environment
from diffopt.machine.nvml import Device, Gpu
from diffopt.recipe.cell import Cell
from diffopt.recipe.launch import Launch
from diffopt.results.result import Result
from diffopt.results.study import Study
from diffopt.run.budget import MARGIN, RESERVE_S, Budget
from diffopt.run.events import CellFinished, CellStarted, Event, NotBegun, PhaseStarted, SweepStarted
from diffopt.run.sweep import run_all

Run = Callable[..., subprocess.CompletedProcess[str]]
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _stubs_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    use_stub(monkeypatch)


def limited(seconds: float, **deadlines: float) -> Launch:
    """So many seconds for cells."""
    shipped = launch(**deadlines)
    return shipped.model_copy(update={"minutes": (seconds + shipped.grace + RESERVE_S) / 60})


def swept(cells: Sequence[Cell], seconds: float | None = None) -> tuple[list[Result], list[Event]]:
    events: list[Event] = []
    how = launch() if seconds is None else limited(seconds)
    return run_all(cells, "s", how, events.append), events


def begun(events: Sequence[Event]) -> list[str]:
    return [event.cell_id for event in events if isinstance(event, CellStarted)]


def ok(seed: int) -> Cell:
    data = stubbed("ok").model_dump(mode="json")
    data["workload"]["seed"] = seed
    return cell_from_config(data)


def keep(cell: Cell, seconds: float | None = None, **changes: Any) -> Result:
    """A row of the study, made here."""
    here = detect_environment(cell.recipe.hardware.device)
    row = a_result(cell, environment=here, env_id=here.id, seconds=seconds, **changes)
    Study.create("s").keep(row)
    return row


# --- what a budget knows


def expected(cell: Cell, *rows: Result, minutes: float = 1e-9) -> float:
    """What the reason says that a cell may take; 0 where it says nothing."""
    budget = Budget(launch().model_copy(update={"minutes": minutes}))
    for row in rows:
        budget.note(row)
    reason = budget.shortage(cell, detect_environment("cpu"))
    assert reason is not None
    found = re.search(r"it may take (\d+) s", reason)
    return float(found[1]) if found else 0.0


def here(cell: Cell, seconds: float | None, **changes: Any) -> Result:
    return a_result(cell, environment=detect_environment("cpu"), seconds=seconds, **changes)


def test_without_minutes_there_is_no_end_and_no_other_order() -> None:
    budget = Budget(launch())
    assert budget.end == math.inf
    budget.note(here(ok(0), 1e9, status="interrupted"))
    assert budget.shortage(ok(0), detect_environment("cpu")) is None
    _, events = swept([ok(2), ok(1)])
    assert begun(events) == [ok(2).id, ok(1).id]
    assert events[0] == SweepStarted(2, None)


def test_a_cell_takes_as_long_as_the_longest_of_its_model_and_its_way_to_compile() -> None:
    compiled = a_cell("compile=default")
    rows = [here(ok(1), 100.0), here(ok(2), 50.0), here(compiled, 1000.0), here(ok(3), 2000.0, status="error")]
    assert expected(ok(0), *rows) == 100 * MARGIN
    assert expected(a_cell("compile=default", "workload.seed=9"), *rows) == 1000 * MARGIN
    assert expected(a_cell("compile=regional"), *rows) == 0, "no row says anything"
    assert expected(a_cell("model=sd15", "model.weights=tiny"), *rows) == 0


def test_a_cell_that_did_not_end_well_needs_more_than_it_took() -> None:
    rows = [here(ok(1), 100.0), here(ok(0), 500.0, status="interrupted"), here(ok(0), 300.0, status="error")]
    assert expected(ok(0), *rows) == 500 * MARGIN
    assert expected(ok(0), here(ok(1), 100.0), here(ok(0), 3.0, status="crashed")) == 100 * MARGIN


def test_rows_from_another_device_say_nothing() -> None:
    other = detect_environment("cpu").model_copy(
        update={"device": Device(kind="cpu", name="Another", memory_bytes=1, gpu=None)}
    )
    assert expected(ok(0), a_result(ok(1), environment=other, seconds=100.0)) == 0


def test_a_shortage_says_what_alone_would_do() -> None:
    budget = Budget(limited(60))
    budget.note(here(ok(1), 96.0))
    reason = budget.shortage(ok(0), detect_environment("cpu"))
    assert reason is not None
    minutes = re.fullmatch(
        r"not begun, launch.minutes=1.08833: \d+ s were left, and by the rows of this study it may take 115 s; "
        r"alone it needs launch.minutes=([\d.]+)",
        reason,
    )
    assert minutes, reason
    again = Budget(launch().model_copy(update={"minutes": float(minutes[1])}))
    again.note(here(ok(1), 96.0))
    assert again.shortage(ok(0), detect_environment("cpu")) is None


def test_first_what_is_new_or_was_cut_off_then_what_failed_last_what_is_done() -> None:
    budget = Budget(launch())
    for seed, status in enumerate(["ok", "error", "interrupted", "timeout"]):
        budget.note(here(seeded(seed), 1.0, status=status))
    order = budget.in_order([seeded(seed) for seed in (0, 1, 2, 3, 4)])
    assert [cell.workload.seed for cell in order] == [2, 4, 1, 3, 0]


# --- sweeps


def test_a_row_says_how_long_its_processes_took() -> None:
    rows, _ = swept([stubbed("ok"), a_cell("quant=fp8_dynamic")])
    assert rows[0].seconds is not None
    assert 0 < rows[0].seconds < 60
    assert (rows[1].status, rows[1].seconds) == ("refused", None)


def test_what_does_not_fit_is_not_begun_and_is_a_row_that_says_so() -> None:
    keep(ok(1), 100.0)
    rows, events = swept([ok(0), ok(1), a_cell("quant=fp8_dynamic")], seconds=50)
    assert [(row.status, row.phase) for row in rows] == [
        ("interrupted", "plan"),
        ("ok", "measure"),
        ("refused", "plan"),
    ]
    assert str(rows[0].reason).startswith("not begun, launch.minutes=")
    assert (rows[0].seconds, rows[0].artifacts.log) == (None, None)
    assert begun(events) == []
    assert isinstance(events[0], SweepStarted)
    assert events[0].minutes == pytest.approx((50 + 0.3 + RESERVE_S) / 60)
    (kept,) = [row for row in Study.open("s").results() if row.cell_id == ok(0).id]
    assert kept == rows[0]
    again, events = swept([ok(0), ok(1)])
    assert [row.status for row in again] == ["ok", "ok"]
    assert begun(events) == [ok(0).id]


def test_a_cell_of_which_nothing_is_known_begins_and_others_learn_from_it() -> None:
    rows, events = swept([ok(0)], seconds=300)
    assert rows[0].status == "ok"
    keep(ok(1), 1000.0)
    rows, events = swept([ok(2), stubbed("error")], seconds=300)
    assert begun(events) == []
    assert {row.status for row in rows} == {"interrupted"}


def test_without_time_nothing_begins() -> None:
    rows, events = swept([ok(0), ok(1)], seconds=-1)
    assert begun(events) == []
    assert {str(row.reason).split(": ")[1] for row in rows} == {"no time was left"}


def test_what_does_not_end_is_stopped_in_time_and_goes_on_when_there_is_more() -> None:
    begin = time.monotonic()
    (row,), _ = swept([stubbed("hang")], seconds=2.5)
    assert time.monotonic() - begin < 2.5 + 0.3 + RESERVE_S
    assert (row.status, row.phase) == ("interrupted", "compile")
    assert re.fullmatch(r"launch.minutes=[\d.]+ were over in phase compile; the same command runs it again", row.reason)
    assert row.seconds is not None
    assert 1.0 < row.seconds < 2.5 + 0.3 + RESERVE_S
    pids = (Study.open("s").folder(row.cell_id, row.env_id) / "pids").read_text().split()
    assert all(gone(pid) for pid in pids)
    (again,), events = swept([stubbed("hang")], seconds=row.seconds)
    assert again == row, "a row that is there stays"
    assert begun(events) == []
    (told,) = [event for event in events if isinstance(event, NotBegun)]
    assert f"it may take {row.seconds * MARGIN:.0f} s; alone it needs launch.minutes=" in told.reason
    assert [event.kept for event in events if isinstance(event, CellFinished)] == [True]
    (more,) = run_all([stubbed("hang")], "s", limited(60, compile=0.1))
    assert more.status == "timeout", "it began, and had its own deadline"


def test_what_failed_before_waits_for_what_is_new() -> None:
    swept([stubbed("error"), stubbed("exit3")])
    rows, events = swept([stubbed("error"), ok(0), stubbed("exit3"), ok(1)], seconds=600)
    assert begun(events) == [ok(0).id, ok(1).id, stubbed("error").id, stubbed("exit3").id]
    assert [row.status for row in rows] == ["error", "ok", "crashed", "ok"], "in the order asked"


def test_a_signal_from_outside_is_still_a_signal() -> None:
    def listen(event: Event) -> None:
        if isinstance(event, PhaseStarted) and event.phase == "compile":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        run_all([stubbed("hang"), ok(0)], "s", limited(60), listen)
    assert caught.value.signal == signal.SIGTERM
    (row,) = Study.open("s").results()
    assert (row.status, row.reason) == ("interrupted", "interrupted while it ran; the same command runs it again")


def on_gpu(cell: Cell) -> Cell:
    other = a_cell("hardware=a100")
    return cell.model_copy(update={"recipe": cell.recipe.model_copy(update={"hardware": other.recipe.hardware})})


def test_all_gpus_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "NVIDIA A100-SXM4-80GB"
    gpus = tuple(Gpu(i, f"GPU-{i}", name, 80 * 2**30, (8, 0), "570.1") for i in range(2))
    monkeypatch.setattr(nvml, "detect_gpus", lambda: gpus)
    described = Device(kind="cuda", name=name, memory_bytes=1, gpu=None)
    monkeypatch.setattr("diffopt.machine.nvml.gpu_device", lambda uuid: described)
    hanging = []
    for seed in range(3):
        data = stubbed("hang").model_dump(mode="json")
        data["workload"]["seed"] = seed
        hanging.append(on_gpu(cell_from_config(data)))
    begin = time.monotonic()
    rows, events = swept(hanging, seconds=2.5)
    assert time.monotonic() - begin < 2.5 + 0.3 + RESERVE_S
    assert [row.phase for row in rows] == ["compile", "compile", "plan"]
    assert len(begun(events)) == 2


def test_a_cell_that_another_process_has_is_waited_for_no_longer_than_there_is_time() -> None:
    study, where = Study.create("s"), detect_environment("cpu")
    with study.claim(ok(0).id, where.id, lambda seconds: True):
        rows, _ = swept([ok(0), ok(1)], seconds=0.7)
    assert rows[0].status == "interrupted"
    assert "over while another process had it" in str(rows[0].reason)
    assert [row.cell_id for row in study.results()] == [ok(1).id], "the row is the other's"
    assert str(rows[1].reason).endswith("no time was left")


# --- the command


@pytest.mark.parametrize("minutes", ["0", "-1", "inf", "nan", "soon"])
def test_minutes_that_are_none(cli: Cli, minutes: str, tmp_path: Path) -> None:
    code, out, err = cli("run", "hardware=cpu", "study=s", f"launch.minutes={minutes}")
    assert (code, out) == (2, "")
    assert "launch.minutes" in err
    assert list(tmp_path.iterdir()) == []


def test_a_plan_says_what_the_minutes_mean(cli: Cli) -> None:
    words = ("-m", "hardware=cpu", "workload.seed=1,2")
    _, without, _ = cli("plan", *words)
    code, out, _ = cli("plan", *words, "launch.minutes=9")
    assert code == 0
    assert out == without + "launch.minutes=9: `diffopt run` begins them in this order as long as there is time\n"


def test_the_command_tells_whether_all_is_done(cli: Cli) -> None:
    keep(a_cell("workload.negative_prompt=ok", "workload.seed=3"), 1000.0)
    words = (
        "run",
        "-m",
        "hardware=cpu",
        "measure=quick",
        "workload.negative_prompt=ok",
        "workload.seed=3,4",
        "study=s",
    )
    code, out, err = cli(*words, "launch.minutes=0.5")
    assert code == 1
    assert out.splitlines()[-1] == (
        "launch.minutes=0.5: 1 of 2 cells have no final row. The same command with study=s goes on."
    )
    assert "2 cells in 0.5 minutes" in err
    code, out, _ = cli(*words, "launch.minutes=60")
    assert code == 0
    assert "no final row" not in out


@pytest.mark.slow
def test_two_calls_of_the_real_command(diffopt: Run) -> None:
    """What the first has no time for, the second measures, and nothing twice."""
    words = ("run", "-m", "hardware=cpu", "measure=quick", "workload.steps=2", "launch.grace=1", "study=s")
    first = diffopt(*words, "workload.seed=1")
    assert first.returncode == 0, first.stderr
    (row,) = Study.open(Path("studies/s")).results()
    assert row.seconds is not None
    minutes = (row.seconds + 1 + RESERVE_S) / 60  # a fifth too few
    short = diffopt(*words, "workload.seed=1,2", f"launch.minutes={minutes}")
    assert short.returncode == 1, short.stderr
    assert "1 of 2 cells have no final row. The same command with study=s goes on.\n" in short.stdout
    assert "[1/2] workload.seed=2 interrupted at plan - not begun, launch.minutes=" in short.stderr
    enough = diffopt(*words, "workload.seed=1,2", "launch.minutes=10")
    assert enough.returncode == 0, enough.stderr
    assert "workload.seed=1 ok" in enough.stderr
    rows = Study.open(Path("studies/s")).results()
    assert [result.status for result in rows] == ["ok", "ok"]
    assert row in rows, "it was kept"
