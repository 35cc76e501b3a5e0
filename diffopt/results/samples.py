"""One timed call of a pipeline, as a worker says it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One stage of a call; seconds. Parts that the stage does not have are None."""

    name: str
    iterations: int
    iterations_per_second: float
    text_encode: float | None
    denoise: float
    decode: float | None


@dataclass(frozen=True)
class Sample:
    """One call of the pipeline; ``latency`` in seconds."""

    latency: float
    parts: tuple[Part, ...]
