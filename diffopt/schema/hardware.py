"""A device that recipes are for: facts of its data sheet. Data; probes nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from diffopt.schema.record import Descriptive, Frozen


class PeakTflops(Frozen):
    """Dense peak per computing precision in TFLOP/s (TOP/s for int8), from the vendor's data sheet; None: not known."""

    fp32: float | None
    tf32: float | None
    fp16: float | None
    bf16: float | None
    fp8: float | None
    int8: float | None


class Slurm(Frozen):
    """How a Slurm cluster customarily names this GPU."""

    constraint: str | None
    gres: str | None


class Hardware(Frozen):
    """The device that the recipe is for; facts of the data sheet, none of this machine."""

    name: str
    device: Literal["cuda", "cpu"]
    match: Annotated[tuple[str, ...], Descriptive()]  # this GPU when NVML's name contains one of these
    compute_capability: tuple[int, int] | None
    sms: Annotated[int | None, Descriptive()]  # streaming multiprocessors
    memory_gib: Annotated[float | None, Descriptive()]  # as NVML reports it, a little less than its name says
    bandwidth_gb_s: Annotated[float | None, Descriptive()]
    peak_tflops: Annotated[PeakTflops, Descriptive()]
    slurm: Annotated[Slurm, Descriptive()]
    ray_accelerator: Annotated[str | None, Descriptive()]
