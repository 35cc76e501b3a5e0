"""The two sides of a comparison, as words of the command line choose them: ``compile=none compile=regional``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from diffopt.errors import UsageError
from diffopt.recipe.labels import option_of_label
from diffopt.recipe.recipe import STEP_GROUPS
from diffopt.results.reference import runtime_of_row
from diffopt.results.result import Result
from diffopt.results.table import useful_rows
from diffopt.schema.words import flatten_to_dotted_keys, value_in_words
from diffopt.schema.workload import PICTURES

WORD = re.compile(r"[A-Za-z_][\w.]*=.*", re.DOTALL)  # KEY=VALUE; the path of a study may have a "=" too


@dataclass(frozen=True)
class RowFilter:
    """``KEY=VALUE``: the rows with that option of a group, that value of a key, or that environment (``env=ID``)."""

    key: str
    value: str

    def takes(self, result: Result) -> bool:
        return self.value in row_values(result, self.key)


def row_values(result: Result, key: str) -> set[str]:
    """What a row has under a key of the command line: an option may have two names, ``hardware=auto`` and the GPU's."""
    cell = result.cell
    if key == "env":
        return {result.env_id}
    if key == "runtime":
        return {runtime_of_row(cell)}
    found = {value_in_words(value) for name, value in flatten_to_dotted_keys(cell) if name == key}
    if key in result.choices:
        found.add(option_of_label(result.choices[key]))
    elif key in STEP_GROUPS:
        found.add(cell["recipe"][key]["kind"])
    if key in ("hardware", "model"):
        found.add(cell["recipe"][key]["name"])
    if (picture := key.removeprefix("workload.")) in PICTURES and cell["workload"].get(picture):
        found.add(cell["workload"][picture]["path"])
    return found


def is_selection_of_rows(word: str) -> bool:
    """Whether a word of the command line is ``KEY=VALUE``, not a study."""
    return WORD.fullmatch(word) is not None


def row_selections(words: Sequence[str], studies: int) -> tuple[RowFilter | None, RowFilter | None]:
    """The sides that words of the command line choose: none, one for both studies, or one for each side.

    Raises UsageError for what does not tell the sides apart.
    """
    chosen = [RowFilter(*word.split("=", 1)) for word in words]
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


def select_rows(results: Sequence[Result], chosen: RowFilter | None, name: str) -> list[Result]:
    """The rows of one side, without refusals for want of a device where the cell has a row from elsewhere.

    Raises UsageError when there is none.
    """
    found = [result for result in useful_rows(results) if chosen is None or chosen.takes(result)]
    if not found and chosen is not None:
        there = sorted({value for result in results for value in row_values(result, chosen.key)})
        has = f"it has {chosen.key}={', '.join(there)}" if there else f"its rows have no {chosen.key}"
        raise UsageError(f"The study {name} has no row with {chosen.key}={chosen.value}; {has}.")
    return found
