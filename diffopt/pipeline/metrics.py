"""What the timed samples of a cell come to: one function for each metric, under the name of its field in a row."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from diffopt.models.calls import Output
from diffopt.results.result import Latency, Split, StageSpeed
from diffopt.results.samples import Sample

Samples = Sequence[Sample]


def timed_metrics(samples: Samples, outputs: Sequence[Output]) -> dict[str, Any]:
    """Every metric of the samples; ``outputs`` are the pictures and videos of the last one."""
    return {name: metric(samples, outputs) for name, metric in METRICS.items()}


def _latency(samples: Samples, outputs: Sequence[Output]) -> Latency:
    seconds = [sample.latency for sample in samples]
    q1, median, q3 = statistics.quantiles(seconds, n=4, method="inclusive")
    return Latency(samples=tuple(seconds), median=median, q1=q1, q3=q3)


def _stage_speeds(samples: Samples, outputs: Sequence[Output]) -> tuple[StageSpeed, ...]:
    """Of each stage, the median over the samples."""
    speeds = []
    for parts in zip(*(sample.parts for sample in samples), strict=True):
        rate = statistics.median(part.iterations_per_second for part in parts)
        speeds.append(StageSpeed(name=parts[0].name, steps=parts[-1].iterations, iterations_per_second=rate))
    return tuple(speeds)


def _images_per_second(samples: Samples, outputs: Sequence[Output]) -> float:
    """A video counts as its frames."""
    pictures = sum(len(output) if isinstance(output, list) else 1 for output in outputs)
    return pictures / statistics.median(sample.latency for sample in samples)


def _split(samples: Samples, outputs: Sequence[Output]) -> Split:
    """Medians over the samples, of all stages together."""

    def median(name: str) -> float | None:
        spent = [[value for part in sample.parts if (value := getattr(part, name)) is not None] for sample in samples]
        seconds = [sum(values) for values in spent if values]
        return statistics.median(seconds) if seconds else None

    return Split(text_encode=median("text_encode"), denoise=median("denoise"), decode=median("decode"))


def medians_of_rounds_in_words(rounds: Sequence[Samples]) -> str:
    """Such as "medians of the rounds: 0.41, 0.45, 0.44 s; "; nothing where there is one."""
    medians = [f"{statistics.median(sample.latency for sample in samples):.3g}" for samples in rounds]
    return f"medians of the rounds: {', '.join(medians)} s; " if len(rounds) > 1 else ""


METRICS: dict[str, Callable[[Samples, Sequence[Output]], Any]] = {
    "latency_s": _latency,
    "stages": _stage_speeds,
    "images_per_second": _images_per_second,
    "split_s": _split,
}
