"""Two studies, or two sides of one: each cell of A beside its counterpart in B. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffopt.errors import UsageError
from diffopt.labels import flatten, labels, one_line, text
from diffopt.reference import DESCRIBED, asked_workload, runtime_of
from diffopt.report import MIB, Table, peak_bytes
from diffopt.result import Latency, Result

Verdict = Literal["faster", "slower", "same", "broken", "mended", "no figure", "absent", "other device"]


@dataclass(frozen=True)
class Selection:
    """``KEY=VALUE``: the rows with that option of a group, that value of a key, or that environment (``env=ID``)."""

    key: str
    value: str

    def takes(self, result: Result) -> bool:
        if self.key == "env":
            return result.env_id == self.value
        if self.key == "runtime":
            return runtime_of(result.cell) == self.value
        if self.key in result.choices:
            return result.choices[self.key] == self.value
        return any(key == self.key and text(value) == self.value for key, value in flatten(result.cell))


@dataclass(frozen=True)
class Comparison:
    """A cell of A and its counterpart in B.

    ``verdict`` is ``same`` where the quartiles of both latencies overlap: their difference may be noise. ``broken``: ok
    in A alone; ``mended``: ok in B alone; ``no figure``: in neither; ``absent``: B has no such cell.
    """

    name: str
    before: Result
    after: Result | None
    verdict: Verdict

    @property
    def ratio(self) -> float | None:
        """Seconds of A over seconds of B: above 1 B is faster. None where one of them has no valid figure."""
        before, after = _latency(self.before), _latency(self.after) if self.after else None
        return before.median / after.median if before and after else None

    def fails(self, percent: float) -> bool:
        """Whether B is slower by more than ``percent`` beyond noise, or has no figure where A has one."""
        if self.verdict == "slower":
            return self.ratio is not None and 1 / self.ratio > 1 + percent / 100
        return self.verdict in ("broken", "absent", "other device") and _latency(self.before) is not None


def selections(words: Sequence[str], studies: int) -> tuple[Selection | None, Selection | None]:
    """The sides that words of the command line choose: none, one for both studies, or one for each side.

    Raises UsageError for what does not tell the sides apart.
    """
    chosen = [Selection(*word.split("=", 1)) for word in words]
    if studies == 1 and len(chosen) != 2:
        raise UsageError(
            "compare takes two studies, or one study and the two sides of it: diffopt compare first compile=none "
            "compile=regional."
        )
    if len(chosen) > 2:
        raise UsageError(f"compare takes one KEY=VALUE for each side, but got {len(chosen)}.")
    if len(chosen) == 2 and chosen[0].key != chosen[1].key:
        raise UsageError(f"The sides differ in one key, but {chosen[0].key} and {chosen[1].key} were given.")
    if studies == 1 and chosen[0] == chosen[1]:
        raise UsageError(f"Both sides are {words[0]}: give two values of {chosen[0].key}.")
    return (None, None) if not chosen else (chosen[0], chosen[-1])


def select(results: Iterable[Result], chosen: Selection | None, name: str) -> list[Result]:
    """The rows of one side. Raises UsageError when there is none."""
    results = list(results)
    found = [result for result in results if chosen is None or chosen.takes(result)]
    if not found:
        said = f" with {chosen.key}={chosen.value}; it has {_values(results, chosen.key)}" if chosen else ""
        raise UsageError(f"The study {name} has no row{said}.")
    return found


def _values(results: Sequence[Result], key: str) -> str:
    """What could have been asked for."""
    if key == "env":
        there = {result.env_id for result in results}
    elif key == "runtime":
        there = {runtime_of(result.cell) for result in results}
    else:
        told = [{**dict(flatten(result.cell)), **result.choices} for result in results]
        there = {text(row[key]) for row in told if key in row}
    return f"{key}={', '.join(sorted(there))}" if there else f"no {key}"


def compare(before: Sequence[Result], after: Sequence[Result], key: str | None = None) -> list[Comparison]:
    """Each row of A with its counterpart in B: the same cell, on a device of the same name.

    Runtime and versions may differ, so that two of them can be compared; so may what only describes a model or a GPU,
    and the group of ``key``. The device may differ where ``key`` is ``hardware``.

    Raises:
        UsageError: a side has several rows of a cell, or no cell of A has a counterpart.
    """
    there = _by_cell(after, key, "B")
    anywhere = {asked for asked, _ in there}
    names = [
        one_line({k: v for k, v in label.items() if k not in (key, "runtime")}) or result.cell_id
        for label, result in zip(labels([(r.choices, r.cell) for r in before]), before, strict=True)
    ]
    told = dict(zip(map(id, before), names, strict=True))
    found = []
    for place, result in _by_cell(before, key, "A").items():
        other = there.get(place)
        absent: Verdict = "other device" if place[0] in anywhere else "absent"
        found.append(Comparison(told[id(result)], result, other, _verdict(result, other) if other else absent))
    if all(comparison.after is None for comparison in found):
        why = "they ran on other devices" if any(c.verdict == "other device" for c in found) else "they differ in more"
        raise UsageError(
            f"No cell of A has a counterpart in B: {why}. Compared are cells that differ in "
            f"{key or 'nothing'} and in runtime and versions alone."
        )
    return found


def _by_cell(results: Sequence[Result], key: str | None, side: str) -> dict[tuple[str, str | None], Result]:
    found: dict[tuple[str, str | None], Result] = {}
    for result in results:
        device = None if key == "hardware" else result.environment.device.name
        other = found.setdefault((_asked(result.cell, key), device), result)
        if other is not result:
            how = "runtime" if runtime_of(other.cell) != runtime_of(result.cell) else "env"
            values = [runtime_of(r.cell) if how == "runtime" else r.env_id for r in (other, result)]
            raise UsageError(
                f"{side} has two rows of one cell ({other.cell_id}, {how}={values[0]} and {how}={values[1]}): choose "
                f"the sides with {how}=VALUE."
            )
    return found


def _asked(cell: Mapping[str, Any], key: str | None) -> str:
    """A cell without what may differ between the sides."""
    recipe = dict(cell["recipe"])
    for part, told in DESCRIBED.items():
        recipe[part] = {k: v for k, v in recipe[part].items() if k not in told}
    asked = {**recipe, "workload": asked_workload(cell["workload"]), "measure": cell["measure"]}
    if key in asked:
        del asked[key]
    return json.dumps({k: v for k, v in flatten(asked) if k != key}, sort_keys=True)


def _verdict(before: Result, after: Result) -> Verdict:
    mine, its = _latency(before), _latency(after)
    if mine is None or its is None:
        return "broken" if mine else "mended" if its else "no figure"
    if its.q1 > mine.q3:
        return "slower"
    return "faster" if its.q3 < mine.q1 else "same"


def _latency(result: Result) -> Latency | None:
    """The figure of a row, where it has one that counts."""
    return result.metrics.latency_s if result.status == "ok" and result.valid else None


def changes(found: Sequence[Comparison]) -> list[str]:
    """What differs between the environments of the sides, one line each: ``torch: 2.11.0 -> 2.13.0``."""
    pairs = [(c.before, c.after) for c in found if c.after is not None]
    lines = []
    for a, b in pairs:
        before, after = a.environment.versions, b.environment.versions
        lines += (
            [(f"runtime: {runtime_of(a.cell)} -> {runtime_of(b.cell)}")]
            if runtime_of(a.cell) != runtime_of(b.cell)
            else []
        )
        lines += [
            f"{name}: {before.get(name, 'none')} -> {after.get(name, 'none')}"
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name)
        ]
        here, its = (r.environment.device for r in (a, b))
        lines += [f"device: {here.name} -> {its.name}"] if here.name != its.name else []
    return list(dict.fromkeys(lines))


def comparison_table(found: Sequence[Comparison]) -> Table:
    """A line for each cell of A; speed-up is seconds of A over seconds of B."""
    headers = ("cell", "A s", "B s", "speed-up", "A MiB", "B MiB", "verdict", "reason")
    rows = [
        (
            c.name,
            _seconds(c.before),
            _seconds(c.after),
            f"{c.ratio:.2f}x" if c.ratio is not None else "",
            _memory(c.before),
            _memory(c.after),
            c.verdict,
            "; ".join(_why("A", c.before) + (_why("B", c.after) if c.after else [])),
        )
        for c in found
    ]
    return Table(headers, tuple(rows), frozenset(range(1, 6)))


def _seconds(result: Result | None) -> str:
    return "" if result is None or result.metrics.latency_s is None else f"{result.metrics.latency_s.median:.4g}"


def _memory(result: Result | None) -> str:
    found = peak_bytes(result) if result else None
    return "" if not found else f"{found / MIB:.0f}"


def _why(side: str, result: Result) -> list[str]:
    """Why a side has no figure that counts."""
    if _latency(result) is not None:
        return []
    status = "not valid" if result.status == "ok" else f"{result.status} at {result.stage}"
    return [f"{side}: {status}" + (f", {result.reason}" if result.reason else "")]


def to_json(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The comparisons as plain data."""
    return [
        {
            "name": c.name,
            "verdict": c.verdict,
            "speed_up": c.ratio,
            "a": _row(c.before),
            "b": _row(c.after) if c.after else None,
        }
        for c in found
    ]


def _row(result: Result) -> dict[str, Any]:
    latency = result.metrics.latency_s
    return {
        "cell_id": result.cell_id,
        "env_id": result.env_id,
        "runtime": runtime_of(result.cell),
        "status": result.status,
        "valid": result.valid,
        "reason": result.reason,
        "latency_s": latency.model_dump(mode="json") if latency else None,
        "peak_memory_bytes": peak_bytes(result),
    }
