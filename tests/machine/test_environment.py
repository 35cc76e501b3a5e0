"""Facts about the machine, and nothing about whose it is."""

import getpass
import json
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from diffopt.errors import Refusal
from diffopt.machine import environment, git, nvml
from diffopt.machine.nvml import Device, GpuState


class NoSuchFact(Exception):
    pass


def fake_pynvml(**answers):
    """NVML with one GPU; facts without an answer are not supported."""
    facts = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetHandleByUUID": "handle",
        "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 * 2**30),
        **answers,
    }

    def ask(name):
        def answer(*args):
            if name not in facts:
                raise NoSuchFact(name)
            return facts[name]

        return answer

    class Module:
        NVMLError = NoSuchFact
        NVMLError_LibraryNotFound = NVMLError_DriverNotLoaded = type("NoDriver", (NoSuchFact,), {})

        def __getattr__(self, name):
            if name.startswith("nvmlClocksEventReason"):
                reasons = {"GpuIdle": 1, "SwPowerCap": 4, "HwThermalSlowdown": 64}
                return reasons.get(name.removeprefix("nvmlClocksEventReason"), 1 << 20)
            return 0 if name.startswith("NVML_") else ask(name)

    return Module()


def test_the_id_is_of_what_decides_speed_only():
    first = environment.detect_environment("cpu")
    assert len(first.id) == 12
    dirty = first.model_copy(update={"git": git.Git(commit="0" * 40, dirty=True)})
    assert dirty.id == first.id
    newer = first.model_copy(update={"versions": {**first.versions, "torch": "9.9"}})
    assert newer.id != first.id
    other = first.model_copy(update={"device": environment.absent_gpu()})
    assert other.id != first.id
    for fact in ("cores", "threads"):
        cpu = first.cpu.model_copy(update={fact: 1 + getattr(first.cpu, fact)})
        assert first.model_copy(update={"cpu": cpu}).id != first.id, fact
        assert other.model_copy(update={"cpu": cpu}).id == other.id, fact


def on_gpu(monkeypatch, **answers):
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml(**answers))
    return environment.detect_environment("cuda", gpu="GPU-1")


def test_the_driver_is_in_the_id_and_the_state_is_not(monkeypatch):
    first = on_gpu(monkeypatch, nvmlSystemGetDriverVersion="570.1")
    assert on_gpu(monkeypatch, nvmlSystemGetDriverVersion="570.1", nvmlDeviceGetClockInfo=7).id == first.id
    assert on_gpu(monkeypatch, nvmlSystemGetDriverVersion="580.2").id != first.id


@pytest.mark.parametrize("name", ["xformers", "flash_attn", "flash_attn_3", "sageattention", "nvidia_cudnn_cu13"])
def test_versions_of_kernels(tmp_path, monkeypatch, name):
    folder = tmp_path / f"{name}-1.5.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert environment.installed_versions()[name.replace("_", "-")] == "1.5"


@pytest.mark.parametrize("fact", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetMemoryInfo"])
def test_a_gpu_that_nvml_cannot_read_is_a_refusal(monkeypatch, fact):
    def fail(*args):
        raise NoSuchFact("no such fact")

    fake = fake_pynvml()
    setattr(fake, fact, fail)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    with pytest.raises(Refusal, match="NVML cannot read GPU GPU-1: no such fact; see nvidia-smi"):
        environment.detect_environment("cuda", gpu="GPU-1")


@pytest.mark.parametrize(
    ("reasons", "slow"),
    [
        (None, ()),
        (("idle", "power cap", "application clocks"), ()),
        (("power cap", "thermal (software)"), ("thermal (software)",)),
        (("hardware slowdown", "power brake"), ("hardware slowdown", "power brake")),
    ],
)
def test_what_slows_a_gpu_down(monkeypatch, reasons, slow):
    state = on_gpu(monkeypatch).device.gpu.model_copy(update={"throttle_reasons": reasons})
    assert state.slowdowns == slow


def test_versions_of_what_is_installed():
    found = environment.installed_versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "diffusers", "transformers", "accelerate", "torchao"} <= found.keys()


def test_nothing_says_whose_machine_it_is(monkeypatch):
    monkeypatch.setenv("A_SECRET", "hf_canary0123456789")
    text = json.dumps(environment.detect_environment("cpu", git=git.git_state()).model_dump(mode="json"))
    assert "canary" not in text
    assert "/" not in text.replace("w/", "")
    for name in (socket.gethostname(), getpass.getuser()):
        assert f'"{name}"' not in text


def test_a_gpu_as_nvml_describes_it(monkeypatch):
    fake = fake_pynvml(
        nvmlSystemGetDriverVersion=b"570.1",
        nvmlDeviceGetClockInfo=1755,
        nvmlDeviceGetEnforcedPowerLimit=700_000,
        nvmlDeviceGetCurrentClocksEventReasons=4 | 64,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    state = GpuState(
        uuid="GPU-1",
        driver="570.1",
        clock_mhz=1755,
        memory_clock_mhz=1755,
        max_clock_mhz=None,
        power_limit_w=700.0,
        temperature_c=None,
        throttle_reasons=("power cap", "thermal (hardware)"),
    )
    expected = Device(kind="cuda", name="NVIDIA H100 80GB HBM3", memory_bytes=80 * 2**30, gpu=state)
    assert nvml.gpu_device("GPU-1") == expected


def test_a_gpu_that_tells_little_is_null_not_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml())
    state = nvml.gpu_device("GPU-1").gpu
    assert state is not None
    assert state.throttle_reasons is None
    assert state.power_limit_w is None


def test_no_torch_is_imported():
    code = (
        "import sys; from diffopt.machine.environment import detect_environment\n"
        "from diffopt.machine.git import git_state\n"
        "detect_environment('cpu', git=git_state()); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
