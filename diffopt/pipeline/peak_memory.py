"""Peak memory of a stretch of work. Imported by workers only."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class PeakMeter(Protocol):
    """The most bytes since the last ``reset()``; None where the system does not tell.

    ``peak()`` is what was in use, ``reserved()`` what a GPU's allocator held.
    """

    def reset(self) -> None: ...
    def peak(self) -> int | None: ...
    def reserved(self) -> int | None: ...


class CudaPeak:
    """PyTorch's allocator on the GPU: what it handed out (tensors), and what it reserved for that. Not the context.

    A replayed CUDA graph works in its private pool, which is reserved but not handed out: there only ``reserved()``
    covers the activations. It also counts spare blocks, so it is the upper bound.
    """

    def reset(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int | None:
        import torch

        return torch.cuda.max_memory_allocated()

    def reserved(self) -> int | None:
        import torch

        return torch.cuda.max_memory_reserved()


class ResidentPeak:
    """The most resident memory of this process, kept by Linux (VmHWM); writing 5 to clear_refs starts it anew."""

    def __init__(self, process: Path = Path("/proc/self")) -> None:
        self._process = process
        self._known = True  # since the process began

    def reset(self) -> None:
        try:
            (self._process / "clear_refs").write_text("5")
            self._known = True
        except OSError:
            self._known = False  # the mark would be that of an earlier stretch

    def peak(self) -> int | None:
        if not self._known:
            return None
        try:
            status = (self._process / "status").read_text()
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), None)

    def reserved(self) -> int | None:
        return None


def peak_memory_meter(device: str) -> PeakMeter:
    return CudaPeak() if device == "cuda" else ResidentPeak()
