"""Real workers on the built-in pipeline: every way to end becomes the right row, and the other cells go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from support.places import FAULTY_STEPS, TESTS
from support.processes import gone

from diffopt.results.result import Result
from diffopt.results.study import Study

DEADLINE = 15  # seconds for the phase optimize: enough on a busy machine, and one row waits for it to pass


def command(study, deadline, *kinds):
    return [sys.executable, str(TESTS / "support" / "sweep_faulty.py"), f"{study}/", str(deadline), *kinds]


def environment():
    """With the package of faulty steps, and a secret that must not come out anywhere."""
    paths = os.pathsep.join([str(FAULTY_STEPS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": paths, "A_TOKEN": "hf_canary0123456789"}


def sweep(study, *kinds):
    words = command(study, DEADLINE, *kinds)
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return {row["choices"]["layout"]: row for row in told["rows"]}, told["kept"]


def test_a_row_of_a_real_worker(tmp_path):
    rows, _ = sweep(tmp_path / "s", "none", "noop")
    ok, noop = rows["none"], rows["noop"]
    assert (ok["status"], ok["phase"]) == ("ok", "measure")
    metrics = ok["metrics"]
    assert len(metrics["latency_s"]["samples"]) == 2
    assert metrics["stages"][0]["steps"] == 1
    assert metrics["images_per_second"] == pytest.approx(1 / metrics["latency_s"]["median"])
    assert min(metrics[key] for key in ("load_s", "first_call_s", "warmup_s")) > 0
    assert all(metrics["split_s"].values())
    assert metrics["peak_memory_bytes"]["steady"] > 10**8
    assert {effect["group"] for effect in ok["effects"]} == {"precision", "memory"}
    (folder,) = (tmp_path / "s/cells" / ok["cell_id"]).iterdir()
    with Image.open(folder / "0.png") as picture:
        assert picture.info["diffopt:cell_id"] == ok["cell_id"]
    assert (noop["status"], noop["phase"]) == ("error", "warmup")
    assert noop["reason"] == "verifying layout (noop): no effect: nothing is in another layout"
    assert noop["effects"] == []
    assert noop["metrics"]["latency_s"] is None
    assert noop["metrics"]["first_call_s"] > 0


ENDINGS = {
    "exit0": ("crashed", "optimize", "exited with code 0"),
    "exit3": ("crashed", "optimize", "exited with code 3"),
    "sigkill": ("crashed", "optimize", "SIGKILL"),
    "sigsegv": ("crashed", "optimize", "SIGSEGV"),
    "hang": ("timeout", "optimize", f"more than {DEADLINE} s in phase optimize"),
    "oom": ("oom", "optimize", "can't allocate memory"),
    "garbage": ("crashed", "optimize", "outcome cannot be read"),
    "garbage_report": ("crashed", "optimize", "reports cannot be read"),
    "noop": ("error", "warmup", "verifying layout (noop): no effect"),
    "raises": ("error", "optimize", "applying layout (raises): KeyError: 'conv_in' (at faulty_steps.py:"),
    "refuses": ("refused", "optimize", "applying layout (refuses): this pipeline has no layout"),
    "wants": ("refused", "load", "pip install 'no-such-package>=2'"),
    "recompiles": ("error", "measure", "recompiled in the timed part, at faulty_steps.py:"),
    "spoils": ("ok", "measure", "denoising step 1 on: they are so since layout=spoils, and finite with precision=fp32"),
    "none": ("ok", "measure", None),
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return tmp_path_factory.mktemp("faulty") / "s"


@pytest.fixture(scope="module")
def rows(study):
    return sweep(study, *ENDINGS)[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENDINGS)
def test_every_way_to_end(rows, kind):
    status, phase, says = ENDINGS[kind]
    row = rows[kind]
    assert (row["status"], row["phase"]) == (status, phase)
    assert (row["reason"] is None) if says is None else (says in row["reason"])


@pytest.mark.slow
def test_an_oom_has_its_peak_memory(rows):
    assert rows["oom"]["metrics"]["peak_memory_bytes"]["first_call"] > 10**8


@pytest.mark.slow
def test_a_traceback_is_in_the_log_only(rows, study):
    (folder,) = (study / "cells" / rows["raises"]["cell_id"]).iterdir()
    assert "Traceback (most recent call last)" in (folder / "log.txt").read_text()
    assert "Traceback" not in (folder / "result.json").read_text()


@pytest.mark.slow
def test_no_secret_of_the_environment_comes_out(rows, study):
    files = [path for path in study.rglob("*") if path.is_file()]
    assert len(files) > 3 * len(ENDINGS) - 3
    assert not [path for path in files if b"canary" in path.read_bytes()]


@pytest.mark.slow
def test_again_only_what_failed_runs(rows, study):
    again, kept = sweep(study, "none", "oom", "wants")
    assert kept == ["none", "oom"]
    assert again["none"] == rows["none"]


def hanging(study):
    """Start a sweep and wait until its first worker hangs; returns it and the processes of the worker's group."""
    parent = subprocess.Popen(command(study, 300, "hang", "none"), env=environment(), stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not any("HANGING" in log.read_text() for log in study.glob("cells/*/*/log.txt")):
        assert time.monotonic() < until
        assert parent.poll() is None
        time.sleep(0.1)
    workers = [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
    group = [stat.parent.name for stat in Path("/proc").glob("[0-9]*/stat") if _group(stat) in workers]
    assert len(group) == 3  # the shell that leads it, the worker, and the process that it started
    return parent, group


def _group(stat):
    try:
        return int(stat.read_text().rsplit(")", 1)[1].split()[2])
    except OSError:
        return None


@pytest.mark.slow
def test_ctrl_c_keeps_a_row_and_exits_130(tmp_path):
    parent, group = hanging(tmp_path / "s")
    parent.send_signal(signal.SIGINT)
    assert "2 cells: 1 interrupted, 1 not run" in parent.communicate(timeout=30)[1]
    assert parent.returncode == 130
    assert all(gone(pid) for pid in group)
    (file,) = (tmp_path / "s" / "cells").glob("*/*/result.json")
    row = Result.model_validate_json(file.read_text())  # this process does not know the step
    assert (row.status, row.phase) == ("interrupted", "optimize")


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_process_and_loses_only_the_cell_in_flight(tmp_path):
    parent, group = hanging(tmp_path / "s")
    parent.kill()
    parent.communicate(timeout=30)
    assert all(gone(pid, within=2.0) for pid in group)
    assert Study.open(tmp_path / "s").results() == ()
