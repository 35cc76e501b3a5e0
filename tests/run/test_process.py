"""The parent's side of a worker: every way to end becomes a verdict, and nothing is left running."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from support.processes import gone, launch, use_stub
from support.rows import stubbed

from diffopt.errors import Refusal
from diffopt.machine import oom_killer
from diffopt.recipe.launch import CompileArtifact
from diffopt.recipe.lock import recipe_to_yaml
from diffopt.run import process
from diffopt.run.process import Stop, run_worker_process


@pytest.fixture
def run(tmp_path, monkeypatch):
    use_stub(monkeypatch)

    def call(mode, **deadlines):
        (tmp_path / "cell.yaml").write_text(recipe_to_yaml(stubbed(mode)))
        phases = []
        stop = Stop()
        verdict = run_worker_process(tmp_path, launch(**deadlines), stop, gpu=None, on_phase=phases.append)
        stop.close()
        return verdict, phases

    return call


@pytest.mark.parametrize(
    ("mode", "status", "phase", "says"),
    [
        ("ok", "ok", "measure", None),
        ("error", "error", "warmup", "no effect"),
        ("exit0", "crashed", "compile", "exited with code 0; its log is empty"),
        ("exit3", "crashed", "load", "exited with code 3; its log ends: the last line"),
        ("sigkill", "crashed", "load", "killed by SIGKILL"),
        ("sigsegv", "crashed", "load", "killed by SIGSEGV"),
        ("garbage_report", "crashed", "load", "reports cannot be read"),
        ("flood", "crashed", "load", "reports cannot be read"),
        ("cut_report", "crashed", "load", "reports cannot be read"),
        ("garbage_outcome", "crashed", "load", "outcome cannot be read"),
        ("lingering", "ok", "measure", None),
        ("heir", "ok", "measure", None),
    ],
)
def test_each_way_to_end(run, mode, status, phase, says):
    verdict, _ = run(mode)
    assert (verdict.status, verdict.phase) == (status, phase)
    assert (verdict.reason is None) if says is None else (says in verdict.reason)


def test_phases_are_told_as_they_begin(run):
    assert run("ok")[1] == ["load", "optimize", "measure"]


def test_a_hang_ends_at_the_deadline_of_its_phase_with_all_its_processes(run, tmp_path):
    began = time.monotonic()
    verdict, _ = run("hang", compile=0.4)
    assert (verdict.status, verdict.phase) == ("timeout", "compile")
    assert verdict.reason == "more than 0.4 s in phase compile (launch.deadlines.compile)"
    assert time.monotonic() - began < 10
    assert all(gone(pid) for pid in (tmp_path / "pids").read_text().split())


def test_what_a_worker_leaves_behind_is_ended(run, tmp_path):
    run("heir")
    assert gone((tmp_path / "pids").read_text())


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """Run a deaf worker, which signals reach when it hangs: the first at once, the others after these seconds."""

    def call(grace, *others):
        use_stub(monkeypatch)
        (tmp_path / "cell.yaml").write_text(recipe_to_yaml(stubbed("hang")))
        stop = Stop()

        def on_phase(phase):
            if phase == "compile":
                stop(signal.SIGTERM)
                for after in others:
                    threading.Timer(after, stop, [signal.SIGTERM]).start()

        began = time.monotonic()
        verdict = run_worker_process(
            tmp_path, launch().model_copy(update={"grace": grace}), stop, gpu=None, on_phase=on_phase
        )
        stop.close()
        assert (verdict.status, verdict.phase) == ("interrupted", "compile")
        assert all(gone(pid) for pid in (tmp_path / "pids").read_text().split())
        return time.monotonic() - began

    return call


def test_a_request_to_stop_ends_even_a_deaf_worker(stopped):
    assert 0.5 < stopped(0.5) < 10


def test_the_second_signal_kills_at_once(stopped):
    assert stopped(60.0, 0.5) < 20


def test_the_wait_does_not_spin(run):
    before = time.process_time()
    run("hang", compile=1.0)
    assert time.process_time() - before < 0.3


def test_the_kernels_killer_makes_it_an_oom(run, monkeypatch):
    counts = iter([4, 5])
    monkeypatch.setattr(process, "kernel_oom_kills", lambda: next(counts))
    verdict, _ = run("sigkill")
    assert (verdict.status, verdict.reason) == ("oom", "killed by the kernel's out-of-memory killer")


def test_the_kernels_count_can_be_read():
    assert oom_killer.kernel_oom_kills() >= 0


@pytest.fixture
def printed(tmp_path, monkeypatch):
    """The environment of a worker, which prints it and ends."""

    def call(gpu):
        monkeypatch.setattr(process, "_command", lambda *rest: ["env"])
        stop = Stop()
        run_worker_process(tmp_path, launch(), stop, gpu=gpu, on_phase=lambda phase: None)
        stop.close()
        return (tmp_path / "log.txt").read_text().splitlines()

    return call


def test_a_worker_sees_its_gpu_only_and_no_remote_code(printed):
    for gpu, seen in (("GPU-7", "GPU-7"), (None, "")):
        log = printed(gpu)
        assert f"CUDA_VISIBLE_DEVICES={seen}" in log
        assert {"DIFFUSERS_DISABLE_REMOTE_CODE=1", "TOKENIZERS_PARALLELISM=false"} <= set(log)


def test_nothing_that_falsifies_a_recipe_is_inherited(printed, monkeypatch):
    switches = ("NVIDIA_TF32_OVERRIDE", "DIFFUSERS_ATTN_BACKEND", "TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE")
    for name in (*switches, "TORCHINDUCTOR_FORCE_DISABLE_CACHES"):
        monkeypatch.setenv(name, "1")
    seen = {line.split("=")[0] for line in printed(None)}
    assert not seen & {*switches}
    assert "TORCHINDUCTOR_FORCE_DISABLE_CACHES" in seen


def test_a_worker_has_compile_caches_of_its_user(printed, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFOPT_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "named"))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    log = printed(None)
    assert f"TORCHINDUCTOR_CACHE_DIR={tmp_path}/named" in log
    assert f"TRITON_CACHE_DIR={tmp_path}/own/triton" in log
    (tmp_path / "named").chmod(0o777)
    with pytest.raises(Refusal, match="named can be written to by others"):
        printed(None)


def test_an_outcome_that_is_a_link_is_not_read(monkeypatch, tmp_path):
    (tmp_path / "elsewhere").write_text('{"status": "ok", "phase": "measure", "valid": true}')
    text = "import os, sys; os.symlink(sys.argv[2], sys.argv[1] + '/outcome.json')"
    command = [sys.executable, "-c", text]
    monkeypatch.setattr(process, "_command", lambda folder, *rest: [*command, str(folder), str(tmp_path / "elsewhere")])
    stop, folder = Stop(), tmp_path / "row"
    folder.mkdir()
    verdict = run_worker_process(folder, launch(), stop, gpu=None, on_phase=lambda phase: None)
    stop.close()
    assert (verdict.status, verdict.outcome) == ("crashed", None)
    assert "outcome cannot be read" in verdict.reason


def test_no_descriptor_is_left_open(run):
    run("ok")
    before = len(os.listdir("/proc/self/fd"))
    for mode in ("ok", "sigkill", "garbage_report"):
        run(mode)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_artifact_to_load_or_save_is_told_to_the_worker(tmp_path):
    plain = process._command(tmp_path, 3, launch(), None)
    assert not {"--save-artifact", "--load-artifact"} & set(plain)
    wanted = CompileArtifact(save=True, load="start.zip", sha256="a" * 64)
    told = process._command(tmp_path, 3, launch().model_copy(update={"compile_artifact": wanted}), None)
    assert told[len(plain) :] == ["--save-artifact", "--load-artifact", "start.zip", "--sha256", "a" * 64]


@pytest.mark.parametrize("level", ["1", "2"])
def test_workers_keep_docstrings_and_asserts(level, monkeypatch):
    """transformers reads docstrings when it is imported, and ``PYTHONOPTIMIZE=2`` takes them away."""
    monkeypatch.setenv("PYTHONOPTIMIZE", level)
    told = [sys.executable, "-c", "import sys; sys.exit(sys.flags.optimize)"]
    assert subprocess.run(told, check=False).returncode == int(level)
    assert subprocess.run(told, check=False, env=process.clean_environment(None)).returncode == 0
