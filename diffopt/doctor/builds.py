"""Which build of torch fits a driver and a GPU, and the command that installs it. Pure; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# without the option, pip keeps an installed torch of the same version, whatever it is built for
INSTALL = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/"
REPLACE = "install the build of torch that fits this driver and GPU (https://pytorch.org/get-started)"
DRIVER = 525  # the oldest driver that knows CUDA 12, and so starts a build in BUILDS


@dataclass(frozen=True)
class Build:
    """A build of torch on its index: what it is built for."""

    index: str
    major: int  # of its CUDA
    oldest: tuple[int, int]  # compute capability
    below: tuple[int, int] | None  # the compute capability from which on it has no kernels


# the newest first. Torch 2.12 to 2.14 have cu126, cu130 and cu132 (https://github.com/pytorch/pytorch, RELEASE.md), and
# cu132 fits nothing that cu130 does not. cu128 ends with torch 2.11: for Blackwell under a driver that knows no CUDA 13
BUILDS = (
    Build("cu130", 13, (7, 5), None),
    Build("cu126", 12, (5, 0), (10, 0)),
    Build("cu128", 12, (10, 0), None),
)


def doctor_remedy_for_cpu_build() -> str:
    """What to do about a torch that does not work where there is no GPU."""
    return f"install torch anew: {INSTALL}cpu"


def doctor_remedy_for_torch_build(driver_cuda: Sequence[int] | None, capability: Sequence[int]) -> str:
    """What to do about a torch that is not right for a driver and a GPU.

    Args:
        driver_cuda: the newest CUDA that the driver knows, as major and minor; None where NVML does not tell.
        capability: compute capability, as major and minor.
    """
    if driver_cuda is None:
        return REPLACE
    if driver_cuda[0] < min(build.major for build in BUILDS):
        known = _dotted(driver_cuda)
        return (
            f"update the driver to {DRIVER} or newer: it knows CUDA up to {known}, which no torch of today is built for"
        )
    fitting = _fitting(driver_cuda, capability)
    if fitting is None:
        return f"choose another GPU: no build of torch has kernels for compute capability {_dotted(capability)}"
    return f"install the build of torch that fits this driver and GPU: {INSTALL}{fitting.index}"


def doctor_on_driver(
    built: str | None, driver: str, driver_cuda: Sequence[int] | None, capability: Sequence[int]
) -> tuple[str, str] | None:
    """What is wrong, and what to do, when a build for CUDA ``built`` cannot start under a driver; else None.

    Args:
        built: such as "13.0"; None for a build without CUDA.
        driver_cuda: as in :func:`doctor_remedy_for_torch_build`, like ``capability``.
    """
    remedy = doctor_remedy_for_torch_build(driver_cuda, capability)
    if built is None:
        return "this torch is a build for the CPU alone", remedy
    if driver_cuda is not None and int(built.split(".")[0]) > driver_cuda[0]:
        says = f"torch is built for CUDA {built}, the driver {driver} knows CUDA up to {_dotted(driver_cuda)}"
        return says, remedy if _fitting(driver_cuda, capability) is None else f"update the driver, or {remedy}"
    return None


def _fitting(driver_cuda: Sequence[int], capability: Sequence[int]) -> Build | None:
    """The newest build that starts under the driver and has kernels for the GPU.

    Programs built for one major version of CUDA run under every driver of that major version and newer ones
    (https://docs.nvidia.com/deploy/cuda-compatibility).
    """
    gpu = tuple(capability)
    for build in BUILDS:
        has_kernels = build.oldest <= gpu and (build.below is None or gpu < build.below)
        if build.major <= driver_cuda[0] and has_kernels:
            return build
    return None


def _dotted(version: Sequence[int]) -> str:
    return ".".join(str(part) for part in version)
