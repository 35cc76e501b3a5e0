"""Is the device that torch sees the one that the recipe declares, whole and usable? Imported by workers only.

NVML said so before, but torch may be built without CUDA or without kernels for this GPU, and may see a part of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from diffopt.errors import Refusal
from diffopt.machine.hardware import GIB
from diffopt.machine.nvml import gpu_device
from diffopt.schema.hardware import Hardware

ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")  # sm: machine code; compute: PTX, compiled when loaded
WHOLE = 0.9  # of NVML's total: the driver keeps a few percent of it, a slice that is smaller has half at most


def check_pipeline_device(hardware: Hardware, gpu: str | None) -> None:
    """Raise Refusal where torch cannot run a cell for ``hardware`` here.

    Args:
        gpu: NVML uuid of the only GPU that is visible; None for the CPU.
    """
    if hardware.device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise Refusal(f"hardware={hardware.name}: PyTorch {torch.__version__} sees no CUDA device here")
    found, name = torch.cuda.get_device_capability(), torch.cuda.get_device_name()
    if hardware.compute_capability not in (None, found):
        raise Refusal(
            f"hardware={hardware.name} has compute capability {hardware.compute_capability}, "
            f"PyTorch runs on {name} with {found}"
        )
    built = torch.cuda.get_arch_list()
    if not has_kernels(built, found):
        raise Refusal(
            f"hardware={hardware.name}: PyTorch {torch.__version__} is built for {', '.join(built)} and has no kernels "
            f"for compute capability {found[0]}.{found[1]} of {name}; install a build for an older or newer CUDA that "
            "has them"
        )
    if gpu is not None:
        _check_whole(hardware, gpu, torch.cuda.get_device_properties(0).total_memory)


def has_kernels(built: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether a build for these architectures, such as ``("sm_80", "sm_90a", "compute_120")``, runs on a GPU.

    Machine code runs on its own major version from its minor version on (with the suffix ``a`` on that one alone),
    PTX on everything that is not older.
    """
    return any(_covers(match, capability) for text in built if (match := ARCHITECTURE.fullmatch(text)))


def _covers(match: re.Match[str], capability: tuple[int, int]) -> bool:
    form, suffix = match[1], match[4]
    built = (int(match[2]), int(match[3]))
    if suffix == "a":
        return built == capability
    return built <= capability and (built[0] == capability[0] or (form == "compute" and not suffix))


def _check_whole(hardware: Hardware, gpu: str, visible: int) -> None:
    """With MIG on, NVML describes the whole GPU under its uuid, while CUDA opens a slice of it."""
    total = gpu_device(gpu).memory_bytes
    if total is not None and visible < WHOLE * total:
        raise Refusal(
            f"hardware={hardware.name}: PyTorch sees {visible / GIB:.1f} GiB of a GPU of {total / GIB:.1f} GiB, so "
            "it runs on a MIG slice, whose speed is not that of the GPU; disable MIG, or run on another GPU"
        )
