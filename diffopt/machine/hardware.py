"""The machine: its NVIDIA GPUs, as NVML tells, and its CPU. Imports no torch."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from diffopt.machine import nvml
from diffopt.machine.nvml import Gpu
from diffopt.schema.hardware import Hardware, PeakTflops

GIB = 2**30  # bytes
CPUINFO = Path("/proc/cpuinfo")
WHOLE_WORDS = r"(?<![A-Za-z0-9]){}(?![A-Za-z0-9])(?! (?:Ti|D|SUPER|Laptop|Mobile)\b)"


def gpu_name_match(names: Iterable[str], gpu_name: str) -> int:
    """Length of the longest of ``names`` that ``gpu_name`` contains as whole words, or 0.

    "L4" is not in "NVIDIA L40S", "H200" not in "GH200", and "RTX 3090" not in "RTX 3090 Ti", "RTX 4090" not in
    "RTX 4090 D" nor "RTX 4090 Laptop GPU", which are other products.
    """
    found = [name for name in names if re.search(WHOLE_WORDS.format(re.escape(name)), gpu_name)]
    return max(map(len, found), default=0)


def hardware_at_hand(names: Sequence[str], read: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Plain data of the hardware option that is this machine's: of ``names``, whose YAMLs ``read`` gives.

    The option whose ``match`` fits the first GPU best, ``cpu`` with this machine's memory without a GPU (the others
    are not read then), else a record of what NVML tells, with unknown peaks.
    """
    gpus = nvml.detect_gpus()
    if not gpus:
        return {**deepcopy(read("cpu")), "memory_gib": host_memory_gib()}
    options = {name: read(name) for name in names}
    lengths = {name: gpu_name_match(option["match"], gpus[0].name) for name, option in options.items()}
    best = max(lengths, key=lengths.__getitem__)
    return deepcopy(options[best]) if lengths[best] else _probed(gpus[0])


def host_memory_gib() -> float:
    """This machine's main memory, which is what a pipeline on the CPU has."""
    return round(host_memory_bytes() / GIB, 1)


def host_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _probed(gpu: Gpu) -> dict[str, Any]:
    """A hardware record for a GPU that no option lists."""
    return {
        "name": re.sub(r"[^a-z0-9]+", "_", gpu.name.lower()).strip("_"),
        "device": "cuda",
        "match": [gpu.name],
        "compute_capability": list(gpu.compute_capability),
        "sms": None,
        "memory_gib": round(gpu.memory_bytes / GIB, 1),
        "bandwidth_gb_s": None,
        "peak_tflops": dict.fromkeys(PeakTflops.model_fields),
        "slurm": {"constraint": None, "gres": None},
        "ray_accelerator": None,
    }


def matching_gpus(hardware: Hardware) -> tuple[Gpu, ...]:
    """The GPUs here that ``hardware`` describes."""
    return tuple(gpu for gpu in nvml.detect_gpus() if gpu_name_match(hardware.match, gpu.name))


def why_hardware_is_not_here(hardware: Hardware) -> str | None:
    """Why this machine cannot run a cell for ``hardware``, or None. Any machine can run one for the CPU."""
    if hardware.device == "cpu" or matching_gpus(hardware):
        return None
    declared = f"hardware={hardware.name} is declared, but this machine has"
    names = sorted({gpu.name for gpu in nvml.detect_gpus()})
    return f"{declared} {' and '.join(names)}" if names else f"{declared} no NVIDIA GPU"


def cpu_model() -> str:
    """The processor's name, such as "AMD EPYC 7763 64-Core Processor"; its architecture where Linux gives none."""
    if CPUINFO.exists():
        for line in CPUINFO.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
