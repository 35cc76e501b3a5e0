"""A comparison as a table and as plain data, and what differs between the environments of its sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffopt.results.compare import Comparison, latency_of_valid_row
from diffopt.results.reference import runtime_of_row
from diffopt.results.result import Result
from diffopt.results.table import MIB, Table, peak_memory_of_row


def environment_changes_between_studies(found: Sequence[Comparison]) -> list[str]:
    """What differs between the environments of the sides, one line each: ``torch: 2.11.0 -> 2.13.0``."""
    lines = []
    for comparison in found:
        if comparison.after is not None:
            facts, others = (_facts(result) for result in (comparison.before, comparison.after))
            lines += [
                f"{name}: {facts.get(name, 'none')} -> {others.get(name, 'none')}"
                for name in dict.fromkeys([*facts, *others])
                if facts.get(name) != others.get(name)
            ]
    return list(dict.fromkeys(lines))


def _facts(result: Result) -> dict[str, str]:
    where = result.environment
    facts = {"runtime": runtime_of_row(result.cell), "device": str(where.device.name)}
    if where.device.gpu is not None:
        facts["driver"] = str(where.device.gpu.driver)
    if where.device.kind == "cpu":
        facts |= {"cores": str(where.cpu.cores), "threads": str(where.cpu.threads)}
    if where.git is not None:
        facts["commit"] = where.git.commit + (" with changes" if where.git.dirty else "")
    return facts | where.versions


def comparison_table(found: Sequence[Comparison]) -> Table:
    """A line for each cell of A; speed-up is seconds of A over seconds of B."""
    headers = ("cell", "A s", "B s", "speed-up", "A MiB", "B MiB", "change", "reason")
    rows = [
        (
            c.name,
            _seconds(c.before),
            _seconds(c.after),
            f"{c.ratio:.2f}x" if c.ratio is not None else "",
            _memory(c.before),
            _memory(c.after),
            c.change,
            "; ".join(_why("A", c.before) + (_why("B", c.after) if c.after else [])),
        )
        for c in found
    ]
    return Table(headers, tuple(rows), frozenset(range(1, 6)))


def _seconds(result: Result | None) -> str:
    return "" if result is None or result.metrics.latency_s is None else f"{result.metrics.latency_s.median:.4g}"


def _memory(result: Result | None) -> str:
    found = peak_memory_of_row(result) if result else None
    return "" if not found else f"{found / MIB:.0f}"


def _why(side: str, result: Result) -> list[str]:
    """Why a side has no figure that counts."""
    if latency_of_valid_row(result) is not None:
        return []
    status = "not valid" if result.status == "ok" else f"{result.status} at {result.phase}"
    return [f"{side}: {status}" + (f", {result.reason}" if result.reason else "")]


def comparisons_to_json(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The comparisons as plain data."""
    return [
        {
            "name": c.name,
            "change": c.change,
            "speed_up": c.ratio,
            "a": _row(c.before),
            "b": _row(c.after) if c.after else None,
        }
        for c in found
    ]


def _row(result: Result) -> dict[str, Any]:
    measured = result.metrics.latency_s
    return {
        "cell_id": result.cell_id,
        "env_id": result.env_id,
        "device": result.environment.device.name,
        "runtime": runtime_of_row(result.cell),
        "status": result.status,
        "valid": result.valid,
        "reason": result.reason,
        "latency_s": measured.model_dump(mode="json") if measured else None,
        "peak_memory_bytes": peak_memory_of_row(result),
    }
