"""How a median stands in tables and lines: with its spread, and with how many samples it is of."""

from __future__ import annotations

from collections.abc import Sequence

from diffopt.results.result import Latency, Result

WITHIN = "~"  # before a speed-up that may be none


def spread_in_words(latency: Latency) -> str:
    """Such as "±2.1%": half the distance between the quartiles, over the median."""
    percent = 100 * latency.spread
    return f"±{percent:.{0 if percent >= 9.95 else 1}f}%"


def samples_in_words(result: Result) -> str:
    """Such as "n=15 in 3 rounds"."""
    samples = result.metrics.latency_s.samples if result.metrics.latency_s else ()
    return f"n={len(samples)}" + (f" in {len(result.rounds)} rounds" if result.rounds else "")


def is_within_spread(ratio: float, *latencies: Latency) -> bool:
    """Whether the larger of two medians, over the smaller, is nearer to 1 than one of them is spread."""
    return max(ratio, 1 / ratio) - 1 < max(latency.spread for latency in latencies)


def notes_on_spread(results: Sequence[Result]) -> tuple[str, ...]:
    """What a table says of its latencies."""
    if all(result.metrics.latency_s is None for result in results):
        return ()
    rounds = sorted({max(1, len(result.rounds)) for result in results if result.metrics.latency_s})
    several = f", in {' or '.join(map(str, rounds))} rounds" if rounds != [1] else ""
    return (f"latency: median of n samples{several}, ± half the distance between their quartiles",)
