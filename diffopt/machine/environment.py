"""Where a cell ran: versions, device, CPU and the state of the user's repository. Needs no torch.

Facts only. No host name, no user name, no path and no environment variable is read into it, since results are shared.
"""

from __future__ import annotations

import os
import platform
from typing import Any, Literal

from diffopt.machine import nvml, packages
from diffopt.machine.git import Git
from diffopt.machine.hardware import cpu_model, host_memory_bytes
from diffopt.machine.interpreter import DISTRIBUTION, Interpreter
from diffopt.machine.nvml import Device
from diffopt.schema.record import Frozen, record_digest
from diffopt.version import __version__

PACKAGES = (
    *(DISTRIBUTION, "torch", "diffusers", "transformers", "accelerate", "torchao"),
    *("triton", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
    *("xformers", "flash-attn", "flash-attn-3", "sageattention", "kernels"),
)


class Cpu(Frozen):
    """The host's processor; ``cores`` are those that this process may use, ``threads`` what PyTorch will use."""

    model: str
    cores: int
    threads: int


class Environment(Frozen):
    """Everything outside the cell that a figure may depend on."""

    versions: dict[str, str]
    device: Device
    cpu: Cpu
    git: Git | None

    @property
    def id(self) -> str:
        """First 12 hex digits of the SHA-256 of what decides speed here.

        That is the versions and the device's name, with the driver on a GPU, with cores and threads on the CPU.
        """
        facts: dict[str, Any] = {"versions": self.versions, "device": self.device.name}
        if self.device.kind == "cpu":
            facts |= {"cores": self.cpu.cores, "threads": self.cpu.threads}
        elif self.device.gpu is not None:
            facts["driver"] = self.device.gpu.driver
        return record_digest(facts)


def detect_environment(
    device: Literal["cuda", "cpu"],
    *,
    gpu: str | None = None,
    git: Git | None = None,
    interpreter: Interpreter | None = None,
) -> Environment:
    """The environment of a cell.

    Args:
        device: what the recipe is for.
        gpu: NVML's uuid of the GPU that runs it; None where there is none.
        git: what :func:`~diffopt.machine.git.git_state` found; asked for once per command, since it starts processes.
        interpreter: what runs the cell, where that is another one than runs diffopt.

    Raises:
        Refusal: NVML cannot read that GPU.
    """
    found = cpu_device() if device == "cpu" else nvml.gpu_device(gpu) if gpu else absent_gpu()
    return Environment(
        versions=installed_versions(interpreter),
        device=found,
        cpu=Cpu(model=cpu_model(), cores=_cores(), threads=_threads()),
        git=git,
    )


def installed_versions(there: Interpreter | None = None) -> dict[str, str]:
    """Versions of Python, of this diffopt and of the packages that decide speed; those that are absent are left out.

    Another interpreter runs the code of this diffopt, whatever is installed there.
    """
    found: dict[str, str | None] = {"python": platform.python_version() if there is None else there.version}
    for package in PACKAGES:
        found[package] = __version__ if package == DISTRIBUTION else packages.installed_version(package, there)
    return {name: version for name, version in found.items() if version is not None}


def cpu_device() -> Device:
    return Device(kind="cpu", name=cpu_model(), memory_bytes=host_memory_bytes(), gpu=None)


def absent_gpu() -> Device:
    """For a cell whose GPU this machine lacks: the row says so, and nothing about another device."""
    return Device(kind="cuda", name=None, memory_bytes=None, gpu=None)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads() -> int:
    """PyTorch's intra-operator threads: OMP_NUM_THREADS where it is set to a number, else the cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) > 0 else _cores()
