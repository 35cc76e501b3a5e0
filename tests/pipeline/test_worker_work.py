"""What a worker makes of a pipeline and a GPU that are made up; real ones are in test_worker.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.rows import a_cell

from diffopt.errors import Refusal
from diffopt.machine.nvml import Device, GpuState
from diffopt.pipeline import worker
from diffopt.pipeline.meter import Meter as RealMeter
from diffopt.pipeline.worker import Work
from diffopt.recipe.cell import Cell
from diffopt.results.result import Outcome, PeakMemory, PeakReserved
from diffopt.results.rounds import EndedRound, write_ended_rounds
from diffopt.results.samples import Part, Sample


class Meter:
    def observe(self, look: Callable[[], Any]) -> Any:
        return look()


class Memory:
    def reset(self) -> None: ...
    def peak(self) -> int:
        return 5

    def reserved(self) -> int:
        return 9


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "plan.json", tmp_path, report=lambda phase: None, gpu="GPU-1")


def gpu(*reasons: str) -> Device:
    state = GpuState(
        uuid="GPU-1",
        driver=None,
        clock_mhz=None,
        memory_clock_mhz=None,
        max_clock_mhz=None,
        power_limit_w=None,
        temperature_c=None,
        throttle_reasons=reasons,
    )
    return Device(kind="cuda", name="a GPU", memory_bytes=None, gpu=state)


@pytest.mark.parametrize(
    ("reasons", "complaint"),
    [
        (("power cap",), None),
        (
            ("power cap", "thermal (software)", "power brake"),
            "the GPU was slowed down: thermal (software), power brake",
        ),
    ],
)
def test_a_slowed_gpu_makes_a_row_not_valid(
    work: Work, monkeypatch: pytest.MonkeyPatch, reasons: tuple[str, ...], complaint: str | None
) -> None:
    monkeypatch.setattr(worker, "gpu_device", lambda uuid: gpu(*reasons))
    work._look_at_gpu(Meter(), "GPU-1")  # type: ignore[arg-type]
    outcome = work._outcome("ok", None)
    assert work._complaints == ([] if complaint is None else [complaint])
    assert outcome.valid is (complaint is None)
    assert outcome.device == gpu(*reasons)


def test_a_gpu_that_cannot_be_read_any_more_keeps_its_samples(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(uuid: str) -> Device:
        raise Refusal(f"NVML cannot read GPU {uuid}: GPU is lost")

    monkeypatch.setattr(worker, "gpu_device", lost)
    work._look_at_gpu(Meter(), "GPU-1")  # type: ignore[arg-type]
    assert work._complaints == ["whether the GPU throttled is not known: NVML cannot read GPU GPU-1: GPU is lost"]


class TimedMeter:
    """Its calls take two seconds each."""

    outputs: tuple[Any, ...] = ()
    memory = Memory()
    noise = RealMeter.noise

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    def samples(self) -> list[Sample]:
        return samples_of(2.0, 2.0)

    def complaints(self) -> list[str]:
        return []


def samples_of(*latencies: float) -> list[Sample]:
    return [Sample(latency, (Part("denoise", 4, 4 / latency, 0.5, 1.0, None),)) for latency in latencies]


@pytest.mark.parametrize(("rounds", "valid"), [(2, False), (3, True)])
def test_drift_from_round_to_round_is_spread_of_the_row(work: Work, tmp_path: Path, rounds: int, valid: bool) -> None:
    """No round varies by itself. Whether all of them do, only the last one says."""
    first = Outcome(status="ok", phase="measure", valid=True, samples=tuple(samples_of(1.0, 1.0)))
    write_ended_rounds(tmp_path, [EndedRound(outcome=first, seconds=9.0)])
    cell = a_cell(f"measure.rounds={rounds}", "measure.max_variation=0.3")
    work._gpu = None
    work._measure(TimedMeter(cell), cell)  # type: ignore[arg-type]
    outcome = work._outcome("ok", "; ".join(work._complaints) or None)
    assert outcome.valid is valid
    if not valid:
        said = str(outcome.reason)
        assert said.startswith("latency varies by 38.5% (standard deviation over mean), more than 30.0% (medians of ")
        assert "(medians of the rounds: 1, 2 s; the load average was " in said
    metrics = outcome.metrics
    assert metrics.latency_s is not None
    assert metrics.latency_s.samples == (1.0, 1.0, 2.0, 2.0)
    assert metrics.stages[0].iterations_per_second == 3.0, "every metric is of the samples of all rounds"
    assert [sample.latency for sample in outcome.samples] == [2.0, 2.0]
    assert Outcome.model_validate_json(outcome.model_dump_json()) == outcome


def test_peaks_while_compiling_and_while_steady(work: Work) -> None:
    work._memory = Memory()
    work._note_peak()
    assert work._outcome("oom", "").metrics.peak_memory_bytes == PeakMemory(first_call=5, steady=None)
    work._enter("measure")
    work._note_peak()
    metrics = work._outcome("ok", None).metrics
    assert metrics.peak_memory_bytes == PeakMemory(first_call=5, steady=5)
    assert metrics.peak_reserved_bytes == PeakReserved(first_call=9, steady=9)


ENDING = """
import atexit, time
from diffopt.pipeline import worker
from diffopt.results.result import Outcome
class Work:
    def __init__(self, *args, **settings): ...
    def outcome(self):
        atexit.register(time.sleep, 600)
        return Outcome(status="ok", phase="measure", valid=True)
worker.Work = Work
worker.main(["plan.json", "outcome.json", "--progress-fd", "1"])
"""


def test_a_worker_that_has_said_all_ends_at_once(tmp_path: Path) -> None:
    """What it started is ended by whoever started it."""
    assert subprocess.run([sys.executable, "-c", ENDING], cwd=tmp_path, timeout=120, check=False).returncode == 0
    assert Outcome.model_validate_json((tmp_path / "outcome.json").read_bytes()).status == "ok"
