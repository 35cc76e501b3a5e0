"""A study of a ladder, a sweep in which each rung adds an optimization: what each one gained. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from diffopt.errors import UsageError
from diffopt.recipe.labels import cell_labels
from diffopt.recipe.options import customary_options, shipped_option
from diffopt.recipe.recipe import STEP_GROUPS
from diffopt.results.published.figures import is_of_published_family
from diffopt.results.result import Result
from diffopt.results.table import Table

LADDERS = ("accelerate_inference", "flux")  # sweeps in conf/sweep whose rows are rungs
FIGURES = ("status", "latency s", "it/s", "over the rung before", "over the first", "reason")

OptionByGroup = Mapping[str, str]  # of each group the option
Placed = tuple[int | None, Result]  # which rung, from 0 on; None: no rung


@dataclass(frozen=True)
class Ladder:
    """The rows of a sweep, each with an option for every group that one of them names, and the models that climb it."""

    models: tuple[str, ...]
    customary: OptionByGroup  # options of these groups where nobody chooses
    rungs: tuple[OptionByGroup, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self.customary)

    def blocks(self, results: Sequence[Result]) -> list[list[Result]]:
        """The results by what no rung changes: model, hardware, workload, how it was measured, and where."""
        found: dict[str, list[Result]] = {}
        for result in results:
            recipe = {key: part for key, part in result.cell["recipe"].items() if key not in self.groups}
            shared = {**result.cell, "recipe": recipe, "env_id": result.env_id}
            found.setdefault(json.dumps(shared, sort_keys=True), []).append(result)
        return list(found.values())

    def place(self, block: Sequence[Result]) -> list[Placed]:
        """The results of a block in the order of the rungs, what is no rung at the end.

        A group in which the block does not vary does not decide, since the command line may have given it one option
        for all rungs; of several rungs that are then alike the one that agrees most counts. What decides may be little,
        in a block that does not vary nothing, and then almost any row is like some rung. So a block has rungs only
        where there are two of them, or one with all of its options; of a model that the sweep does not name, where
        more than half of them are, with all of their options.
        """
        varying = [group for group in self.groups if len({result.choices.get(group) for result in block}) > 1]
        found = [self._position(result.choices, varying) for result in block]
        exact = {i for i, rung in enumerate(self.rungs) for result in block if rung.items() <= result.choices.items()}
        likely = exact or len({position for position in found if position is not None}) > 1
        climbed = likely if self._named(block[0]) else 2 * len(exact) > len(self.rungs)
        placed = list(zip(found if climbed else [None] * len(block), block, strict=True))
        return sorted(placed, key=lambda pair: len(self.rungs) if pair[0] is None else pair[0])

    def _position(self, choices: OptionByGroup, deciding: Sequence[str]) -> int | None:
        agree = [{group for group in self.groups if choices.get(group) == rung[group]} for rung in self.rungs]
        fits = [i for i, same in enumerate(agree) if same.issuperset(deciding)]
        return max(fits, key=lambda i: len(agree[i]), default=None)

    def _named(self, result: Result) -> bool:
        """Whether the sweep names a row's model, or the one that its tiny model stands for."""
        return any(is_of_published_family(result.cell["recipe"]["model"]["name"], model) for model in self.models)

    def changes(self, result: Result, before: Result | None) -> str:
        """The options that differ from the rung before, or from what is customary."""
        base = self.customary if before is None else before.choices
        mine = result.choices
        named = [group for group in self.groups if group in mine]  # a stranger's row may say less
        return " ".join(f"{group}={mine[group]}" for group in named if mine[group] != base.get(group, ""))


def ladder_table(results: Sequence[Result], name: str) -> Table:
    """The table of a ladder: a block for each model, workload and machine, its rungs in the order of the sweep.

    A rung's gain is the latency of the rung before over its own, and that of the first rung over its own. Where the
    rung before has no figure that counts, the gain is over the nearest one below that has, and says which. Cells that
    are no rung come last in their block, without a number.

    Args:
        results: rows of a study, in any order.
        name: one of LADDERS.

    Raises:
        UsageError: none of the cells is a rung of that ladder.
    """
    chosen = read_ladder_sweep(name)
    placed = [chosen.place(block) for block in chosen.blocks(results)]
    if all(position is None for block in placed for position, _ in block):
        raise UsageError(f"No cell of this study is a rung of sweep={name}, a ladder of {' and '.join(chosen.models)}.")
    told = dict(zip(map(_key, results), _labels(results, chosen.groups), strict=True))
    keys = list(dict.fromkeys(key for label in told.values() for key in label))

    def shared(result: Result) -> list[str]:
        return [told[_key(result)].get(key, "") for key in keys]

    placed.sort(key=lambda block: shared(block[0][1]))
    rows = [(result.cell_id, *shared(result), *cells) for block in placed for result, cells in _climb(block, chosen)]
    headers = ("cell", *keys, "rung", "adds", *FIGURES)
    figures = {"rung", *FIGURES} - {"status", "reason"}
    return Table(headers, tuple(rows), frozenset(i for i, header in enumerate(headers) if header in figures))


def read_ladder_sweep(sweep: str) -> Ladder:
    """A shipped sweep as a ladder."""
    data, options = shipped_option("sweep", sweep), customary_options()
    rows, models = data["zip"], data["axes"]["model"]
    customary = {group: options[group] for group in STEP_GROUPS if any(group in row for row in rows)}
    return Ladder(tuple(models), customary, tuple({**customary, **row} for row in rows))


def _key(result: Result) -> tuple[str, str]:
    return result.cell_id, result.env_id


def _labels(results: Sequence[Result], groups: Sequence[str]) -> list[dict[str, str]]:
    """What tells the blocks apart, which no option of a rung does; with the device where there are several."""
    found = cell_labels([result.point for result in results])
    kept = [{key: text for key, text in label.items() if key not in groups} for label in found]
    if len({result.env_id for result in results}) > 1:
        places = [f"{result.environment.device.name or 'none'} ({result.env_id})" for result in results]
        kept = [{**label, "device": place} for label, place in zip(kept, places, strict=True)]
    return kept


def _climb(block: Sequence[Placed], rungs: Ladder) -> Iterator[tuple[Result, tuple[str, ...]]]:
    """The lines of a block: the result, and its texts from the column ``rung`` on."""
    below: list[tuple[int, Result]] = []
    for position, result in block:
        if position is None:
            yield result, ("", rungs.changes(result, None), *_figures(result), "", "", _reason(result))
            continue
        adds = rungs.changes(result, below[-1][1] if below else None)
        yield result, (str(position + 1), adds, *_figures(result), *_gains(result, below), _reason(result))
        below.append((position, result))


def _gains(result: Result, below: Sequence[tuple[int, Result]]) -> tuple[str, str]:
    """Over the rung before, and over the first one."""
    own = result.metrics.latency_s
    counting = [(number, other.metrics.latency_s) for number, other in below if other.status == "ok" and other.valid]
    figures = [(number, latency.median) for number, latency in counting if latency is not None]
    if own is None or not figures:
        return "", ""
    (first, slowest), (nearest, previous) = figures[0], figures[-1]
    before = f"{previous / own.median:.2f}x" + ("" if nearest == below[-1][0] else f" (over rung {nearest + 1})")
    return before, f"{slowest / own.median:.2f}x" if first == 0 else ""


def _figures(result: Result) -> tuple[str, str, str]:
    """Status, seconds of a call, iterations per second of each stage."""
    latency = result.metrics.latency_s
    speeds = " / ".join(f"{stage.iterations_per_second:.4g}" for stage in result.metrics.stages)
    status = result.status_in_words
    return status, "" if latency is None else f"{latency.median:.4g}", speeds


def _reason(result: Result) -> str:
    """Why there is no figure, or none that counts."""
    if result.status == "ok":
        return result.reason or ""
    return f"{result.phase}: {result.reason}" if result.reason else result.phase
