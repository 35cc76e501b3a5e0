"""The record of one measured cell: what was asked, what was done, what came out, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import AliasChoices, Field

from diffopt.machine.environment import Environment
from diffopt.machine.nvml import Device
from diffopt.results.quality import QualityFigures, is_accepted, shipped_thresholds
from diffopt.results.samples import Sample
from diffopt.schema.quality import Tier
from diffopt.schema.record import Frozen

SCHEMA_VERSION: Literal[1] = 1

Status = Literal["ok", "refused", "oom", "error", "crashed", "timeout", "interrupted"]
Phase = Literal["plan", "load", "optimize", "compile", "warmup", "measure", "quality"]


class Latency(Frozen):
    """End to end, from the prompts to pictures on the host, of one batch; seconds."""

    samples: tuple[float, ...]  # as they came, those of all rounds together
    median: float
    q1: float
    q3: float

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, over the median."""
        return (self.q3 - self.q1) / 2 / self.median if self.median > 0 else 0.0


class StageSpeed(Frozen):
    """Speed of one denoising stage of the pipeline (a cascade has several)."""

    name: str
    steps: int  # iterations of one call: calls of the scheduler, each over the whole batch
    iterations_per_second: float  # median over the samples


class Split(Frozen):
    """Medians of the parts of a call, in seconds; null where the pipeline has no such part. They need not add up."""

    text_encode: float | None
    denoise: float | None
    decode: float | None


class PeakMemory(Frozen):
    """Bytes: allocated by PyTorch on a GPU, resident in the process on the CPU; null where it cannot be told."""

    first_call: int | None = None  # while compiling; of a cell that ended before the end of it: until there
    steady: int | None = None  # during the samples


class PeakReserved(Frozen):
    """Bytes that PyTorch's allocator reserved on a GPU; null on the CPU.

    At least what was allocated. Where CUDA graphs replay, only this counts their activations, which live in the
    graphs' private pool; elsewhere the difference is blocks kept for the next allocation.
    """

    first_call: int | None = None
    steady: int | None = None


class CompileCache(Frozen):
    """Graphs that inductor took from its cache on disk, and graphs that it compiled anew, in the first call.

    With no miss, ``first_call_s`` is the time of a warm start, else of a cold one.
    """

    hits: int
    misses: int  # those that the cache cannot hold among them


class Start(Frozen):
    """A fresh process from loading the pipeline to the end of its first call; seconds."""

    load_s: float
    first_call_s: float
    compile_cache: CompileCache | None


class Starts(Frozen):
    """With empty compile caches, and with what that start left in them. Files of weights are in memory by chance."""

    cold: Start
    warm: Start


@dataclass(frozen=True)
class Column:
    """How the table of a study shows a metric: under which header, in which format of Python's."""

    header: str
    form: str = ".4g"


class Metrics(Frozen):
    """What was measured; null what the cell did not reach.

    A metric with a :class:`Column` stands in the table of every study that has a figure of it.
    """

    load_s: float | None = None
    first_call_s: float | None = None  # compiling included; warm or cold, as ``compile_cache`` tells
    warmup_s: float | None = None
    latency_s: Latency | None = None
    stages: tuple[StageSpeed, ...] = ()
    images_per_second: Annotated[float | None, Column("images/s")] = None  # pictures that came out; of videos, frames
    split_s: Split | None = None
    peak_memory_bytes: PeakMemory = PeakMemory()
    peak_reserved_bytes: PeakReserved = PeakReserved()
    compile_cache: CompileCache | None = None  # None: inductor compiled nothing
    starts: Starts | None = None  # where measure.starts asks for them


class Round(Frozen):
    """One of the processes of a row with ``measure.rounds``, from loading on, and what it had by itself."""

    seconds: float  # wall clock
    samples: int  # how many of the row's are its own; they stand in the order of the rounds
    load_s: float | None
    first_call_s: float | None
    warmup_s: float | None
    compile_cache: CompileCache | None
    peak_memory_bytes: PeakMemory
    peak_reserved_bytes: PeakReserved


class StepEffect(Frozen):
    """The proof of one step."""

    group: str
    kind: str
    stage: str | None = None  # which stage of a cascade; None: the pipeline is none
    summary: str
    numbers: dict[str, int | float | str]


class Artifacts(Frozen):
    """Files beside ``result.json``."""

    log: str | None = None
    pictures: tuple[str, ...] = ()
    compile_cache: str | None = None  # an artifact for launch.compile_artifact.load
    compile_cache_sha256: str | None = None


class Outcome(Frozen):
    """What a worker process says of itself; everything else of a result is known outside of it."""

    status: Literal["ok", "refused", "oom", "error"]
    phase: Phase
    reason: str | None = None
    valid: bool = False
    effects: tuple[StepEffect, ...] = ()
    metrics: Metrics = Metrics()  # of the samples of earlier rounds too
    samples: tuple[Sample, ...] = ()  # its own
    pictures: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()  # the pictures that the cell is judged by
    quality: QualityFigures | None = None
    compile_cache: str | None = None
    compile_cache_sha256: str | None = None
    device: Device | None = None  # as it was right after the samples, when clocks and throttling tell something


class Result(Frozen):
    """One row of a study. ``phase`` is where the cell ended; for ``ok`` the last one that it went through."""

    schema_version: Literal[1] = SCHEMA_VERSION
    cell_id: str
    env_id: str
    recipe_id: str
    status: Status
    phase: Annotated[Phase, Field(validation_alias=AliasChoices("phase", "stage"))]  # older rows say ``stage``
    reason: str | None  # why it is not ok, or why an ok row is not valid
    valid: bool
    choices: dict[str, str]
    cell: dict[str, Any]  # without its choices, and without the folder of a local model, since results are shared
    effects: tuple[StepEffect, ...] = ()
    metrics: Metrics = Metrics()
    quality: QualityFigures | None = None  # where cell.quality asks for it
    environment: Environment
    artifacts: Artifacts = Artifacts()
    seconds: float | None = None  # wall clock of its processes, from start to end; None: none was started
    rounds: tuple[Round, ...] = ()  # those that ended well, where measure.rounds asks for several
    notes: tuple[str, ...] = ()  # of its plan: what works, but not as one may think

    @property
    def final(self) -> bool:
        """Whether the cell need not run again: ok and valid, out of memory, or refused by its plan.

        Refusals for want of a device or a package (their phase is ``load``), what is not valid and every failure run
        again.
        """
        measured = self.valid if self.status == "ok" else self.status == "oom"
        return measured or (self.status == "refused" and self.phase == "plan")

    @property
    def required(self) -> Tier | None:
        """What its user accepts of its pictures."""
        asked = self.cell.get("quality")
        tier = asked.get("require") if isinstance(asked, dict) else None
        return tier if tier in get_args(Tier) else None

    @property
    def rejected(self) -> bool:
        """Whether its pictures are worse than its user accepts, or nobody knows."""
        if self.status != "ok" or self.required is None:
            return False
        return self.quality is None or not is_accepted(self.quality, self.required, shipped_thresholds())

    @property
    def status_in_words(self) -> str:
        """``ok``, and what is to be said against it; else how it ended."""
        against = ["not valid"] * (not self.valid) + ["rejected"] * self.rejected
        return self.status if self.status != "ok" else ", ".join(["ok", *against])

    @property
    def point(self) -> dict[str, Any]:
        """The cell as plain data with its choices, which a row keeps beside it."""
        return {**self.cell, "choices": self.choices}
