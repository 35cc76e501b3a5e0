"""What torch sees against what the recipe declares, on a torch that says it has a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from support.rows import a_cell

from diffopt.errors import Refusal
from diffopt.machine.nvml import Device
from diffopt.pipeline import device_check
from diffopt.pipeline.device_check import check_pipeline_device, has_kernels

GIB = 2**30


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (("sm_75", "sm_80", "sm_90"), (8, 0), True),
        (("sm_75", "sm_80", "sm_90"), (8, 9), True),  # machine code for 8.0 runs on all of 8.x
        (("sm_75", "sm_80", "sm_90"), (7, 0), False),  # a V100 with a build for CUDA 13
        (("sm_86",), (8, 0), False),
        (("sm_80", "sm_90"), (10, 0), False),
        (("sm_80", "sm_90", "compute_90"), (10, 0), True),  # PTX
        (("sm_80", "compute_120"), (10, 0), False),
        (("sm_90a",), (9, 0), True),
        (("sm_100a",), (10, 3), False),
        (("sm_100f",), (10, 3), True),
        (("compute_90a",), (10, 0), False),
        ((), (8, 0), False),
    ],
)
def test_kernels_for_a_gpu(built: tuple[str, ...], capability: tuple[int, int], runs: bool) -> None:
    assert has_kernels(built, capability) is runs


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A whole A100, as torch and NVML describe it; tests change what they are about."""
    facts: dict[str, object] = {
        "is_available": True,
        "get_device_capability": (8, 0),
        "get_device_name": "NVIDIA A100-SXM4-80GB",
        "get_arch_list": ["sm_75", "sm_80"],
        "get_device_properties": SimpleNamespace(total_memory=79 * GIB),
    }
    for name in facts:
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: facts[name])
    whole = Device(kind="cuda", name="NVIDIA A100-SXM4-80GB", memory_bytes=80 * GIB, gpu=None)
    monkeypatch.setattr(device_check, "gpu_device", lambda uuid: whole)
    return facts


A100 = a_cell("hardware=a100").recipe.hardware


def test_the_declared_gpu_is_fine(gpu: dict[str, object]) -> None:
    check_pipeline_device(A100, "GPU-1")
    gpu.clear()
    check_pipeline_device(a_cell().recipe.hardware, None)  # the CPU asks torch nothing


@pytest.mark.parametrize(
    ("fact", "value", "says"),
    [
        ("is_available", False, "sees no CUDA device"),
        ("get_device_capability", (9, 0), r"PyTorch runs on NVIDIA A100-SXM4-80GB with \(9, 0\)"),
        ("get_arch_list", ["sm_90", "sm_100"], r"is built for sm_90, sm_100 and has no kernels for .* 8\.0"),
        ("get_device_properties", SimpleNamespace(total_memory=40 * GIB), "40.0 GiB of a GPU of 80.0 GiB.*MIG slice"),
    ],
)
def test_another_gpu_is_refused(gpu: dict[str, object], fact: str, value: object, says: str) -> None:
    gpu[fact] = value
    with pytest.raises(Refusal, match=says):
        check_pipeline_device(A100, "GPU-1")
