"""Two studies, or two sides of one: each cell of A beside its counterpart in B. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffopt.errors import UsageError
from diffopt.recipe.labels import cell_label_line, cell_labels
from diffopt.recipe.recipe import STEP_GROUPS
from diffopt.results.reference import asked_of_row, runtime_of_row
from diffopt.results.result import Latency, Result
from diffopt.schema.words import flatten_to_dotted_keys

NAMED = 3  # differing keys that an error names

Change = Literal["faster", "slower", "same", "broken", "mended", "no figure", "absent", "other device"]


@dataclass(frozen=True)
class Comparison:
    """A cell of A and its counterpart in B.

    ``change`` is ``same`` where the quartiles of both latencies overlap: their difference may be noise. ``broken``:
    only A has a figure that counts; ``mended``: only B; ``no figure``: neither; ``absent``: B has no such cell.
    """

    name: str
    before: Result
    after: Result | None
    change: Change

    @property
    def ratio(self) -> float | None:
        """Seconds of A over seconds of B: above 1 B is faster. None where one of them has no valid figure."""
        before, after = latency_of_valid_row(self.before), latency_of_valid_row(self.after) if self.after else None
        return before.median / after.median if before and after and after.median > 0 else None

    def fails(self, percent: float) -> bool:
        """Whether B is slower by more than ``percent`` beyond noise, or ends worse than A, or is not there."""
        before, after = latency_of_valid_row(self.before), latency_of_valid_row(self.after) if self.after else None
        if before and after:
            return self.change == "slower" and after.median > before.median * (1 + percent / 100)
        ended = self.after.status if self.after else None
        return before is not None or (self.before.status == "ok" and ended != "ok")


def compare_studies(
    before: Sequence[Result], after: Sequence[Result], key: str | None = None, *, one_study: bool = False
) -> list[Comparison]:
    """Each row of A with its counterpart in B: the same cell, on a device of the same name.

    What only describes a model or a GPU may differ, and the group of ``key``; the device where ``key`` is ``hardware``.
    Runtime and versions may differ between two studies, so that two of them can be compared; between the sides of one
    study only where ``key`` asks for it.

    Raises:
        UsageError: a side has several rows that would stand beside one of the other, or no cell of A has a counterpart.
    """
    settled = one_study and key not in ("runtime", "env", "hardware")
    here, there = (_placed(rows, key, settled, side) for rows, side in ((before, "A"), (after, "B")))
    names = _names(before, key)
    anywhere = {place[0] for place in there}
    found = []
    for place, result in here.items():
        other = there.get(place)
        absent: Change = "other device" if place[0] in anywhere else "absent"
        found.append(Comparison(names[id(result)], result, other, _change(result, other) if other else absent))
    if all(comparison.after is None for comparison in found):
        raise UsageError(f"No cell of A has a counterpart in B: {_unlike(here, there)}.")
    return found


def cells_only_in_study(after: Sequence[Result], found: Sequence[Comparison]) -> list[str]:
    """Ids of the cells of B that stand beside no cell of A."""
    beside = {id(comparison.after) for comparison in found}
    return sorted({result.cell_id for result in after if id(result) not in beside})


# What a row asked for, as text; the device's name; runtime and environment, where these must be alike.
_Place = tuple[str, str | None, str]


def _placed(results: Sequence[Result], key: str | None, settled: bool, side: str) -> dict[_Place, Result]:
    found: dict[_Place, Result] = {}
    for result in results:
        device = None if key == "hardware" else result.environment.device.name
        where = f"{runtime_of_row(result.cell)} {result.env_id}" if settled else ""
        place = (json.dumps(_without(asked_of_row(result.cell), key), sort_keys=True), device, where)
        other = found.setdefault(place, result)
        if other is not result:
            raise UsageError(f"{side} has two rows that are compared with the same one: {_between(other, result)}.")
    return found


def _without(data: Mapping[str, Any], key: str | None) -> dict[str, Any]:
    """What was asked, flat, without what ``key`` may change."""
    gone = STEP_GROUPS if key == "recipe" else () if key is None else (key,)
    return {
        name: value
        for name, value in flatten_to_dotted_keys(data)
        if not any(f"{name}.".startswith(f"{k}.") for k in gone)
    }


def _between(one: Result, other: Result) -> str:
    """What tells two rows apart, and how to choose one of them."""
    if one.cell_id != other.cell_id:
        first, second = (cell_label_line(label) for label in cell_labels([r.point for r in (one, other)]))
        return f"{first or one.cell_id} and {second or other.cell_id}; choose the sides by what differs between these"
    key = "runtime" if runtime_of_row(one.cell) != runtime_of_row(other.cell) else "env"
    shown = [runtime_of_row(r.cell) if key == "runtime" else r.env_id for r in (one, other)]
    return f"cell {one.cell_id} with {key}={shown[0]} and {key}={shown[1]}; choose the sides with {key}=VALUE"


def _unlike(here: Mapping[_Place, Result], there: Mapping[_Place, Result]) -> str:
    """Why nothing was paired: by the two rows that are most alike."""
    pairs = [(a, b) for a in here for b in there]
    if same := [(a, b) for a, b in pairs if a[0] == b[0]]:
        (a, b), *_ = same
        if a[1] != b[1]:
            return f"A ran on {a[1] or 'no device'}, B on {b[1] or 'no device'}"
        return "they ran in different runtimes or environments, which runtime= or env= would compare"
    data = {place[0]: json.loads(place[0]) for place in (*here, *there)}
    nearest = min((_differing(data[a[0]], data[b[0]]) for a, b in pairs), key=len)
    more = f" and {len(nearest) - NAMED} more" if len(nearest) > NAMED else ""
    return f"they also differ in {', '.join(nearest[:NAMED])}{more}"


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*one, *other} if one.get(key) != other.get(key))


def _names(results: Sequence[Result], key: str | None) -> dict[int, str]:
    """What tells the rows of A apart, by their Python ids; with the device where there are several."""
    told = cell_labels([result.point for result in results])
    several = len({result.environment.device.name for result in results}) > 1
    names = {}
    for label, result in zip(told, results, strict=True):
        kept = {k: v for k, v in label.items() if k != key}
        kept |= {"device": str(result.environment.device.name)} if several else {}
        names[id(result)] = cell_label_line(kept) or result.cell_id
    return names


def _change(before: Result, after: Result) -> Change:
    mine, its = latency_of_valid_row(before), latency_of_valid_row(after)
    if mine is None or its is None:
        return "broken" if mine else "mended" if its else "no figure"
    if its.q1 > mine.q3:
        return "slower"
    return "faster" if its.q3 < mine.q1 else "same"


def latency_of_valid_row(result: Result) -> Latency | None:
    """The figure of a row, where it has one that counts."""
    return result.metrics.latency_s if result.status == "ok" and result.valid else None
