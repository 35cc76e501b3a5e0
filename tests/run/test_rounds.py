"""``measure.rounds``: all cells once, then all again; one row of all samples; what was cut goes on where it stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.processes import launch, use_stub
from support.rows import a_cell, stubbed

from diffopt.config.resolve import cell_from_config
from diffopt.errors import Interrupted
from diffopt.machine import nvml
from diffopt.machine.environment import detect_environment
from diffopt.machine.nvml import Device, Gpu
from diffopt.recipe.cell import Cell
from diffopt.recipe.planned import Plan
from diffopt.results.result import PeakMemory, Result
from diffopt.results.row_files import read_result
from diffopt.results.study import Study
from diffopt.run import runner
from diffopt.run.budget import MARGIN, Budget
from diffopt.run.events import CellFinished, CellStarted, Event, PhaseStarted, RoundFinished, RowUnreadable
from diffopt.run.sweep import run_all

Run = Callable[..., subprocess.CompletedProcess[str]]
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _stubs_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    use_stub(monkeypatch)


def in_rounds(mode: str, rounds: int = 3, seed: int = 0, starts: bool = False) -> Cell:
    data = stubbed(mode).model_dump(mode="json")
    data["workload"]["seed"] = seed
    data["measure"] |= {"rounds": rounds, "starts": starts}
    return cell_from_config(data)


def swept(*cells: Cell, anew: bool = False, **deadlines: float) -> tuple[list[Result], list[Event]]:
    events: list[Event] = []
    return run_all(cells, "s", launch(**deadlines), events.append, anew=anew), events


def begun(events: Sequence[Event]) -> list[tuple[str, int]]:
    return [(event.cell_id, event.round) for event in events if isinstance(event, CellStarted)]


def folder(row: Result) -> Path:
    return Study.open("s").folder(row.cell_id, row.env_id)


# --- what is run, and in which order


def test_all_cells_are_measured_once_before_any_is_again() -> None:
    first, second = in_rounds("rounds"), in_rounds("rounds", seed=1)
    rows, events = swept(first, second)
    assert begun(events) == [(cell.id, number) for number in (1, 2, 3) for cell in (first, second)]
    assert [row.cell_id for row in rows] == [first.id, second.id]
    assert [event.result for event in events if isinstance(event, CellFinished)] == rows
    ended = [
        (event.cell_id, event.round, event.rounds, event.median_s)
        for event in events
        if isinstance(event, RoundFinished)
    ]
    assert ended == [(cell.id, number, 3, number + 0.25) for number in (1, 2) for cell in (first, second)]
    assert Study.open("s").results() == tuple(sorted(rows, key=lambda row: row.cell_id))


def test_cells_of_one_round_are_done_after_the_first() -> None:
    once, thrice = in_rounds("rounds", rounds=1), in_rounds("rounds")
    (row, _), events = swept(once, thrice)
    assert begun(events) == [(once.id, 1), *((thrice.id, number) for number in (1, 2, 3))]
    assert row.rounds == ()
    assert row.metrics.latency_s is not None
    assert row.metrics.latency_s.samples == (1.0, 1.5)


def test_a_row_has_the_samples_of_all_rounds_and_what_each_had_by_itself() -> None:
    (row,), _ = swept(in_rounds("rounds"))
    assert (row.status, row.valid, row.reason) == ("ok", True, None)
    metrics = row.metrics
    assert metrics.latency_s is not None
    assert metrics.latency_s.samples == (1.0, 1.5, 2.0, 2.5, 3.0, 3.5)
    assert (metrics.latency_s.median, metrics.latency_s.q1, metrics.latency_s.q3) == (2.25, 1.625, 2.875)
    assert [each.samples for each in row.rounds] == [2, 2, 2]
    assert (metrics.load_s, metrics.first_call_s, metrics.warmup_s) == (10.0, 20.0, 30.0), "the first round's"
    assert [each.first_call_s for each in row.rounds] == [20.0, 40.0, 60.0]
    assert metrics.peak_memory_bytes == PeakMemory(first_call=9, steady=3), "the largest"
    assert row.seconds == pytest.approx(sum(each.seconds for each in row.rounds))
    assert read_result(folder(row) / "result.json") == row


def test_what_lies_in_the_folder_of_the_row() -> None:
    (row,), _ = swept(in_rounds("rounds"))
    logs = ["log-1.txt", "log-2.txt", "log.txt"]
    assert sorted(p.name for p in folder(row).iterdir()) == [".claim", "0.png", "cell.yaml", *logs, "result.json"]
    assert [(folder(row) / name).read_text() for name in logs] == ["round 1\n", "round 2\n", "round 3\n"]


def test_a_round_that_is_not_valid_makes_the_row_so() -> None:
    (row,), _ = swept(in_rounds("slowed"))
    assert (row.status, row.valid, row.reason) == ("ok", False, "round 1: the GPU was slowed down")
    _, events = swept(in_rounds("slowed"))
    assert [number for _, number in begun(events)] == [1, 2, 3], "all of it is measured again"


def test_starts_are_measured_in_the_first_round() -> None:
    (row,), events = swept(in_rounds("rounds", rounds=2, starts=True))
    assert row.metrics.starts is not None
    assert row.metrics.starts.cold.load_s == 10.0
    loads = [event for event in events if isinstance(event, PhaseStarted) and event.phase == "load"]
    assert len(loads) == 4 == in_rounds("rounds", rounds=2, starts=True).measure.processes


def test_a_cell_keeps_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = tuple(Gpu(i, f"GPU-{i}", "NVIDIA A100", 80 * 2**30, (8, 0), "570.1") for i in range(2))
    monkeypatch.setattr(nvml, "detect_gpus", lambda: gpus)
    device = Device(kind="cuda", name="NVIDIA A100", memory_bytes=1, gpu=None)
    monkeypatch.setattr("diffopt.machine.nvml.gpu_device", lambda uuid: device)
    had: dict[str, set[str]] = {}
    run_workers = runner.run_cell_workers

    def work(plan: Plan, *rest: object) -> object:
        had.setdefault(plan.cell.id, set()).add(str(rest[3]))
        return run_workers(plan, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "run_cell_workers", work)
    hardware = a_cell("hardware=a100").recipe.hardware
    cells = [in_rounds("rounds", rounds=2, seed=seed) for seed in range(3)]
    cells = [
        cell.model_copy(update={"recipe": cell.recipe.model_copy(update={"hardware": hardware})}) for cell in cells
    ]
    rows, _ = swept(*cells)
    assert [row.status for row in rows] == ["ok"] * 3
    assert all(len(places) == 1 for places in had.values()), had


# --- what does not end well


def test_a_round_that_fails_is_how_the_cell_ended() -> None:
    failing, fine = in_rounds("second_fails"), in_rounds("rounds")
    rows, events = swept(failing, fine)
    assert [row.status for row in rows] == ["error", "ok"]
    assert (rows[0].phase, rows[0].reason, rows[0].valid) == ("warmup", "round 2 of 3: no effect", False)
    assert (rows[0].metrics.latency_s, len(rows[0].rounds)) == (None, 1)
    assert begun(events)[:3] == [(failing.id, 1), (fine.id, 1), (failing.id, 2)]
    assert (failing.id, 3) not in begun(events)
    assert not (folder(rows[0]) / "rounds.json").exists()
    _, events = swept(failing)
    assert begun(events) == [(failing.id, 1), (failing.id, 2)], "a failure is measured again from the start"


def test_a_deadline_is_that_of_one_process() -> None:
    (row,), _ = swept(in_rounds("second_hangs"), compile=0.3)
    said = "round 2 of 3: more than 0.3 s in phase compile (launch.deadlines.compile)"
    assert (row.status, row.phase, row.reason) == ("timeout", "compile", said)


# --- what is cut off


def interrupted(*cells: Cell, number: int = signal.SIGINT) -> None:
    """A signal comes when a cell is compiled."""

    def listen(event: Event) -> None:
        if isinstance(event, PhaseStarted) and event.phase == "compile":
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted):
        run_all(cells, "s", launch(), listen)


def test_after_a_signal_it_goes_on_with_the_round_that_was_cut() -> None:
    cut, fine = in_rounds("second_hangs_once"), in_rounds("rounds")
    interrupted(cut, fine)
    (row,) = Study.open("s").results()
    assert (row.cell_id, row.status) == (cut.id, "interrupted")
    assert row.reason == "round 2 of 3: interrupted while it ran; the same command runs it again"
    assert Study.open("s").unfinished() == (fine.id,), "it has one of three rounds, and no row"
    rows, events = swept(cut, fine)
    assert begun(events) == [(cell.id, number) for number in (2, 3) for cell in (cut, fine)]
    kept = [(event.cell_id, event.round) for event in events if isinstance(event, RoundFinished) and event.kept]
    assert kept == [(cut.id, 1), (fine.id, 1)]
    samples = [row.metrics.latency_s.samples for row in rows if row.metrics.latency_s]
    assert samples == [(1.0, 1.5, 2.0, 2.5, 3.0, 3.5)] * 2
    assert not list(Path("studies/s").rglob("rounds.json"))


def test_anew_measures_all_rounds() -> None:
    cut = in_rounds("second_hangs_once")
    interrupted(cut)
    (row,), events = swept(cut, anew=True)
    assert [number for _, number in begun(events)] == [1, 2, 3]
    assert len(row.rounds) == 3
    assert swept(cut)[1][1:2] == [CellFinished(Study.open("s").results()[0], cut.id, kept=True)]


def test_rounds_that_cannot_be_read_are_measured_anew_and_told() -> None:
    cut = in_rounds("second_hangs_once")
    interrupted(cut)
    (file,) = Path("studies/s").rglob("rounds.json")
    file.write_text('{"round')
    (row,), events = swept(cut)
    assert [number for _, number in begun(events)] == [1, 2, 3]
    (told,) = [event for event in events if isinstance(event, RowUnreadable)]
    assert str(file) in told.reason
    assert len(row.rounds) == 3


# --- time limits


def test_a_budget_counts_single_rounds() -> None:
    where, cell = detect_environment("cpu"), in_rounds("rounds")
    (row,), _ = swept(cell)
    rounds = tuple(
        each.model_copy(update={"seconds": seconds})
        for each, seconds in zip(row.rounds, (20.0, 40.0, 30.0), strict=True)
    )
    row = row.model_copy(update={"rounds": rounds, "seconds": 90.0})

    def expected(*known: Result) -> float:
        budget = Budget(launch().model_copy(update={"minutes": 1e-9}))
        for each in known:
            budget.note(each)
        found = re.search(r"it may take (\d+) s", str(budget.shortage(cell, where)))
        return float(found[1]) if found else 0.0

    assert expected(row) == 40 * MARGIN
    cut = row.model_copy(update={"status": "interrupted", "rounds": rounds[:1], "seconds": 70.0})
    assert expected(cut) == 50 * MARGIN, "the second one, which did not end"
    budget = Budget(launch().model_copy(update={"minutes": 1e-9}))
    budget.note_round(cell, where, 50.0)
    assert f"it may take {50 * MARGIN:.0f} s" in str(budget.shortage(in_rounds("rounds", seed=7), where))


def test_without_time_for_a_round_the_cell_is_interrupted_and_its_rounds_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = in_rounds("rounds", rounds=2)
    shortage = Budget.shortage

    def none_left(budget: Budget, cell: Cell, where: object) -> str | None:
        return "not begun, launch.minutes=1: no time was left" if budget._longest else shortage(budget, cell, where)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Budget, "shortage", none_left)
        (row,), _ = swept(cell)
    assert (row.status, row.phase) == ("interrupted", "plan")
    assert row.reason == "round 2 of 2: not begun, launch.minutes=1: no time was left"
    assert row.seconds == row.rounds[0].seconds
    (row,), events = swept(cell)
    assert (row.status, begun(events)) == ("ok", [(cell.id, 2)])


# --- the words


def test_one_round_is_the_default_and_no_part_of_an_id() -> None:
    data = in_rounds("rounds", rounds=1).model_dump(mode="json")
    del data["measure"]["rounds"]
    assert cell_from_config(data).id == in_rounds("rounds", rounds=1).id == stubbed("rounds").id
    assert cell_from_config(data).measure.rounds == 1
    assert in_rounds("rounds").id != in_rounds("rounds", rounds=1).id


@pytest.mark.parametrize(
    ("rounds", "says"), [("0", "greater than or equal to 1"), ("101", "less than or equal to 100")]
)
def test_rounds_that_are_none(cli: Cli, rounds: str, says: str) -> None:
    code, out, err = cli("run", "hardware=cpu", f"measure.rounds={rounds}")
    assert (code, out) == (2, "")
    assert f"measure.rounds={rounds}: " in err
    assert says in err


def test_a_plan_says_how_many_processes_there_are(cli: Cli) -> None:
    words = ("hardware=cpu", "measure=quick", "measure.rounds=3")
    assert "\nmeasured in 3 rounds: 3 processes\n" in cli("plan", *words)[1]
    assert "\nmeasured in 3 rounds: 5 processes\n" in cli("plan", *words, "measure.starts=true")[1]
    _, out, _ = cli("plan", "-m", *words, "attention=sdpa,math,cudnn")
    assert out.endswith(
        "3 cells: 2 ok, 1 refused\nmeasured in 3 rounds, every cell once before any again: 6 processes\n"
    )
    assert "rounds" not in cli("plan", "hardware=cpu", "measure=quick")[1]


def test_what_the_command_says(cli: Cli) -> None:
    words = ("hardware=cpu", "measure=quick", "measure.rounds=3", "workload.negative_prompt=rounds", "study=s")
    code, out, err = cli("run", *words)
    assert code == 0
    assert "round 1 of 3: 1.250 s\n" in err
    assert "ok 2.250 s ±28% (n=6 in 3 rounds)\n" in err
    line = dict(zip(*(re.split("  +", each) for each in out.splitlines()[:2]), strict=False))
    assert (line["latency s"], line["n"]) == ("2.25 ±28%", "6")
    assert "latency: median of n samples, in 3 rounds, ± half the distance between their quartiles\n" in out
    _, out, _ = cli("report", "s", "--csv")
    head, values = (line.split(",") for line in out.splitlines())
    assert "round_3.first_call_s" in head
    assert "metrics.latency_s.n" in head
    assert "rounds" not in head
    assert len(values) >= len(head)


@pytest.mark.slow
def test_the_real_command_killed_between_rounds(tmp_path: Path) -> None:
    words = ("-m", "model=tiny", "attention=sdpa,math", "hardware=cpu", "measure=quick", "measure.rounds=2")
    command = [
        sys.executable,
        "-m",
        "diffopt",
        "run",
        *words,
        "measure.max_variation=10",
        "workload.steps=2",
        "study=s",
    ]
    parent = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert parent.stderr is not None
    for line in parent.stderr:
        if "attention=math round 1 of 2: " in line:
            break
    parent.kill()
    parent.communicate()
    assert Study.open("s").results() == ()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if " round " in line]
    assert [line.endswith("(kept)") for line in told] == [True, True, False, False], told
    rows = Study.open("s").results()
    assert [(row.status, row.valid) for row in rows] == [("ok", True)] * 2
    for row in rows:
        assert row.metrics.latency_s is not None
        assert len(row.metrics.latency_s.samples) == 6 == sum(each.samples for each in row.rounds)
        assert json.loads((folder(row) / "result.json").read_text())["cell"]["measure"]["rounds"] == 2
        assert row.metrics.first_call_s == row.rounds[0].first_call_s
        assert row.artifacts.pictures == ("0.png",)
