"""Benchmark figures that others published, as data: ``NAME.csv`` beside this file. Needs no torch.

One row per figure. ``text`` is what the page prints, which may be seconds per iteration (``2.34s``), a figure with a
slip of the pen (``12,.79``) or why there is no figure; ``iterations_per_second`` is what it means.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from diffopt.errors import UsageError
from diffopt.models.resolve import OLD_TINY
from diffopt.schema.words import did_you_mean

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """One figure of a published benchmark, or the reason why there is none."""

    gpu: str  # as the page writes it
    batch_size: int  # pictures per call
    pipeline: str  # the page's name of the row
    model: str  # model option of its family
    option: str  # model option that was measured: inpainting and ControlNet have their own
    task: str  # a workload's task, or "cascade"
    stage: int | None  # of a cascade, from 1; None where the pipeline is none, or where no stage has a figure
    torch: str
    compiled: bool
    iterations_per_second: float | None
    status: str  # ok, unsupported, not_measured, oom:load, oom:after_warmup, oom:after_iteration_2
    text: str

    @property
    def hardware(self) -> str:
        """The option of the group ``hardware``: ``rtx3090`` for "RTX 3090"."""
        return published_gpu_name(self.gpu)


def published_gpu_name(gpu: str) -> str:
    """A GPU's name in small letters and without blanks, as names are compared."""
    return gpu.replace(" ", "").lower()


def is_of_published_family(option: str, family: str) -> bool:
    """Whether a model option is ``family``, a variant such as ``sd15_inpaint``, or the tiny one that stands for it."""
    return f"{option.removeprefix(OLD_TINY)}_".startswith(f"{family}_")


def published_names() -> tuple[str, ...]:
    """The benchmarks that ship with diffopt."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.csv")))


@cache
def published_figures(name: str) -> tuple[Figure, ...]:
    """The figures of one benchmark, in the order of its page. Raises UsageError for an unknown name."""
    if name not in published_names():
        raise UsageError(
            f"There is no published benchmark '{name}'.{did_you_mean(name, published_names())} "
            f"There is: {', '.join(published_names())}."
        )
    with open(FOLDER / f"{name}.csv", encoding="utf-8", newline="") as file:
        return tuple(_figure(row) for row in csv.DictReader(file))


def _figure(row: dict[str, str]) -> Figure:
    speed = row["iterations_per_second"]
    return Figure(
        gpu=row["gpu"],
        batch_size=int(row["batch_size"]),
        pipeline=row["pipeline"],
        model=row["model"],
        option=row["option"],
        task=row["task"],
        stage=int(row["stage"]) if row["stage"] else None,
        torch=row["torch"],
        compiled=row["compiled"] == "yes",
        iterations_per_second=float(speed) if speed else None,
        status=row["status"],
        text=row["text"],
    )
