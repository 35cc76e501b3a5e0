"""machine.hardware: NVML through a fake pynvml, matching of options, what this machine cannot run."""

import re
import sys

import pytest
import yaml
from support.nvml import fake_pynvml
from support.places import REPO

from diffopt.errors import Refusal
from diffopt.machine import hardware, nvml
from diffopt.schema.hardware import Hardware, PeakTflops, Slurm

CONF = REPO / "conf" / "hardware"
OPTIONS = {path.stem: yaml.safe_load(path.read_text()) for path in CONF.glob("*.yaml")}


def as_hardware(name):
    return Hardware.from_plain(OPTIONS[name])


@pytest.fixture
def machine(monkeypatch):
    """Make this machine have the GPUs of these names."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def have(*names, **kwargs):
        module = fake_pynvml(names, **kwargs)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    return have


def test_options_list_every_field():
    expected = ["auto", "cpu", "a100", "h100", "h200", "v100", "t4", "l4", "l40s", "rtx3090", "rtx4090", "b200"]
    assert sorted(OPTIONS) == sorted(expected)
    for name, data in OPTIONS.items():
        assert data["name"] == name
        assert data.keys() == Hardware.model_fields.keys()
        assert data["peak_tflops"].keys() == PeakTflops.model_fields.keys()
        assert data["slurm"].keys() == Slurm.model_fields.keys()
        if name != "auto":
            as_hardware(name)


def test_memory_is_what_nvml_reports_and_every_gpu_has_its_multiprocessors():
    named = {"t4": 16, "l4": 24, "l40s": 48, "v100": 16, "a100": 80, "h100": 80, "h200": 141, "b200": 180}
    for name in set(OPTIONS) - {"auto", "cpu"}:
        card = as_hardware(name)
        assert card.sms > 0
        assert card.memory_gib <= named.get(name, 24)
    assert as_hardware("l40s").memory_gib < 48


def test_peaks_follow_from_the_tensor_cores_of_the_generation():
    for name in set(OPTIONS) - {"auto", "cpu"}:
        card = as_hardware(name)
        peaks, capability = card.peak_tflops, card.compute_capability
        assert (peaks.bf16 is not None) == (peaks.tf32 is not None) == (capability >= (8, 0)), name
        assert (peaks.fp8 is not None) == (capability >= (8, 9)), name
        assert peaks.fp16 > peaks.fp32, name


def test_nvml_has_one_reader():
    files = [*(REPO / "diffopt").rglob("*.py"), *(REPO / "scripts").rglob("*.py")]
    assert len(files) > 100
    importing = [path for path in files if re.search(r"^\s*(import|from) pynvml\b", path.read_text(), re.MULTILINE)]
    assert importing == [REPO / "diffopt" / "machine" / "nvml.py"]
    assert importing[0].read_text().count("import pynvml") == 1


@pytest.mark.parametrize("fails", ["nvmlDeviceGetCount", "nvmlDeviceGetUUID", "nvmlDeviceGetHandleByUUID"])
def test_nvml_is_closed_whatever_it_answers(machine, monkeypatch, fails):
    module = machine("NVIDIA L40S")

    def fail(*args):
        raise module.NVMLError("lost")

    monkeypatch.setattr(module, fails, fail, raising=False)
    monkeypatch.setattr(module, "nvmlSystemGetCudaDriverVersion_v2", fail, raising=False)
    with pytest.raises(Refusal, match="lost; see nvidia-smi"):
        nvml.gpu_device("GPU-0aaa") if fails == "nvmlDeviceGetHandleByUUID" else nvml.detect_gpus()
    assert nvml.driver_cuda() is None
    assert module.open == 0


@pytest.mark.parametrize("error", ["NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded"])
def test_no_driver_is_no_gpu(machine, error):
    machine(init_error=error)
    assert nvml.detect_gpus() == ()
    assert hardware.hardware_at_hand(list(OPTIONS), OPTIONS.__getitem__) == OPTIONS["cpu"] | {
        "memory_gib": hardware.host_memory_gib()
    }


def test_a_broken_driver_is_not_a_cpu(machine):
    machine(init_error="NVMLError_Unknown")
    with pytest.raises(Refusal, match="does not answer"):
        nvml.detect_gpus()


def test_detect_describes_each_gpu_and_closes_nvml(machine):
    module = machine("NVIDIA L40S", "NVIDIA L4")
    first, second = nvml.detect_gpus()
    assert first == nvml.Gpu(
        index=0,
        uuid="GPU-0aaa",
        name="NVIDIA L40S",
        memory_bytes=48 * 2**30,
        compute_capability=(8, 9),
        driver="580.10",
    )
    assert second.index == 1
    assert module.open == 0


@pytest.mark.parametrize(
    ("setting", "indices"), [("1", [1]), ("1,0", [1, 0]), ("GPU-1", [1]), ("", []), ("-1", []), ("0,7,1", [0])]
)
def test_cuda_visible_devices_is_honoured(machine, monkeypatch, setting, indices):
    machine("NVIDIA L40S", "NVIDIA L4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    assert [gpu.index for gpu in nvml.detect_gpus()] == indices


def test_a_mig_slice_is_refused(machine, monkeypatch):
    machine("NVIDIA A100-SXM4-80GB")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    with pytest.raises(Refusal, match="MIG"):
        nvml.detect_gpus()


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("A100-SXM4-40GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("Tesla T4", "t4"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_auto_finds_the_option_of_a_gpu(machine, name, option):
    machine(name)
    assert hardware.hardware_at_hand(list(OPTIONS), OPTIONS.__getitem__) == OPTIONS[option]
    assert hardware.why_hardware_is_not_here(as_hardware(option)) is None


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA L40", "nvidia_l40"),
        ("NVIDIA T400 4GB", "nvidia_t400_4gb"),
        ("NVIDIA GH200 480GB", "nvidia_gh200_480gb"),
        ("NVIDIA GeForce RTX 3090 Ti", "nvidia_geforce_rtx_3090_ti"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "nvidia_geforce_rtx_4090_laptop_gpu"),
    ],
)
def test_auto_probes_an_unlisted_gpu(machine, name, slug):
    machine(name)
    probed = Hardware.from_plain(hardware.hardware_at_hand(list(OPTIONS), OPTIONS.__getitem__))
    assert (probed.name, probed.device, probed.compute_capability, probed.memory_gib) == (slug, "cuda", (8, 9), 48.0)
    assert set(probed.peak_tflops.model_dump().values()) == {None}
    assert hardware.why_hardware_is_not_here(probed) is None


def test_the_longest_match_wins(machine):
    machine("NVIDIA A100 80GB PCIe")
    options = {"cpu": OPTIONS["cpu"], "any": {"match": ["A100"]}, "pcie": {"match": ["A100 80GB PCIe"]}}
    assert hardware.hardware_at_hand(list(options), options.__getitem__) == options["pcie"]


def test_auto_returns_a_copy(machine):
    machine()
    hardware.hardware_at_hand(list(OPTIONS), OPTIONS.__getitem__)["peak_tflops"]["fp32"] = 1.0
    assert OPTIONS["cpu"]["peak_tflops"]["fp32"] is None


def test_declared_hardware_must_be_here(machine):
    machine(init_error="NVMLError_LibraryNotFound")
    assert hardware.why_hardware_is_not_here(as_hardware("cpu")) is None
    assert "hardware=a100 is declared, but this machine has no NVIDIA GPU" in hardware.why_hardware_is_not_here(
        as_hardware("a100")
    )
    machine("Tesla T4", "NVIDIA L4")
    assert hardware.why_hardware_is_not_here(as_hardware("a100")).endswith("this machine has NVIDIA L4 and Tesla T4")
    assert [gpu.index for gpu in hardware.matching_gpus(as_hardware("l4"))] == [1]


def test_cpu_model_is_read_from_proc(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    assert hardware.cpu_model()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2:1\nmodel name\t: other\n")
    assert hardware.cpu_model() == "Some CPU @ 2:1"
