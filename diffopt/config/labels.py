"""Whether what a configuration is called is what it has: names of options against values, ids against both.

A label is the name of an option, and in parentheses the keys whose values are not the option's, ``sdpa (changed:
backend)``. The command line's own changes are added to it. A recipe file says its labels itself, and anybody may have
edited it, so they are checked.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diffopt.config.composed import Composed, FileLabels
from diffopt.config.composer import Composer
from diffopt.config.quality import resolve_quality
from diffopt.errors import UsageError
from diffopt.models.tiny import has_tiny, with_tiny_model_values
from diffopt.recipe.cell import Cell
from diffopt.recipe.labels import changed_keys_of_label, changed_label, option_of_label
from diffopt.recipe.options import merged_option
from diffopt.recipe.recipe import GROUP_ORDER, STEP_GROUPS, Recipe
from diffopt.schema.hardware import Hardware
from diffopt.schema.model import Model
from diffopt.schema.record import Frozen, descriptive_fields
from diffopt.schema.runtime import Runtime
from diffopt.schema.words import did_you_mean, value_in_words


def _deciding(record: type[Frozen]) -> frozenset[str]:
    return frozenset(record.model_fields) - descriptive_fields(record)


# What an option of these groups stands for: what only describes may be corrected, weights are a word of their own, and
# all of a workload but its task stands in every plan.
STANDS_FOR = {
    "model": _deciding(Model) - {"weights", "content"},
    "hardware": _deciding(Hardware),
    "workload": frozenset({"task"}),
    "runtime": _deciding(Runtime),
}
FILLED_IN = frozenset({*STANDS_FOR, "lora"})  # groups in whose options null is what is looked up, or given
ANY = {"hardware": "auto"}  # an option that stands for whatever is there
NO_VALUES = ("recipe", "launch")  # groups of which a cell has the name alone
IDS_BEGIN = "# diffopt recipe "
IDS = re.compile(IDS_BEGIN + r"([0-9a-f]{12}), cell ([0-9a-f]{12})\s*")


def labels_of_file(path: Path, data: Mapping[str, Any]) -> tuple[dict[str, str], FileLabels]:
    """The options that a recipe file names by group, and what it says is changed of them.

    Raises UsageError for a name that is no group's.
    """
    labels: dict[str, str] = data["choices"]
    if unknown := sorted(set(labels) - set(GROUP_ORDER)):
        raise UsageError(f"--recipe {path}: choices.{unknown[0]} is of no group; groups are {', '.join(GROUP_ORDER)}.")
    groups = (*labels, *data["recipe"], "workload", "measure", "quality", "runtime")
    changed = {group: changed_keys_of_label(labels.get(group, "")) for group in groups}
    return {group: option_of_label(label) for group, label in labels.items()}, FileLabels(path, changed)


def check_ids_of_file(path: Path, text: str, data: dict[str, Any]) -> None:
    """Raises UsageError where a comment at the top of a recipe file gives it the ids of something else."""
    comments = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    line = next((line for line in comments if line.startswith(IDS_BEGIN)), None)
    if line is None:
        return
    said = IDS.fullmatch(line)
    if said is None:
        raise UsageError(
            f"--recipe {path}: its line '{line[:80]}' does not give the ids of a recipe and of a cell, as `diffopt "
            "show` writes them. Mend the line, or take it out."
        )
    try:
        cell = Cell.from_plain(data)
    except ValidationError:
        return  # which is told where the cell is made
    if said.groups() != (cell.recipe.id, cell.id):
        raise UsageError(
            f"--recipe {path} says that it is recipe {said[1]}, cell {said[2]}, and its values are those of recipe "
            f"{cell.recipe.id}, cell {cell.id}: they were changed since `diffopt show` printed it. If that was meant, "
            f"write '# diffopt recipe {cell.recipe.id}, cell {cell.id}' into its first line, or take the line out."
        )


class Labels:
    """Gives cells their labels; reads each option once per command."""

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
        self._options: dict[tuple[str, str], dict[str, Any]] = {}
        self._recipes: dict[str, dict[str, str]] = {}  # the options that each recipe chooses, by group

    def label(self, cell: Cell, composed: Composed) -> Cell:
        """The cell with its options' names, and what the command line or its recipe file changed of them.

        Raises UsageError where a recipe file names an option that there is not, or one whose values it has not without
        saying so.
        """
        typed = {key.partition(".")[0] for key in composed.typed if "." in key}
        labels = dict(composed.choices)
        for group, option in composed.choices.items():
            file = composed.labels if composed.labels is not None and group in composed.labels.changed else None
            if file is None and group not in typed:
                continue
            if option not in self._composer.options(group):
                raise UsageError(self._unknown(file, group, option, cell))
            if group == "recipe":  # which has options instead of values: see below
                continue
            found = self._changed(cell, group, option)
            if file is not None and (odd := _odd(file.changed[group], found, f"{group}.", composed.typed)):
                raise UsageError(self._unlike(file, group, option, cell, odd[0]))
            labels[group] = changed_label(option, found)
        labels["recipe"] = self._label_of_recipe(composed)
        return cell if labels == dict(cell.choices) else cell.model_copy(update={"choices": labels})

    def _label_of_recipe(self, composed: Composed) -> str:
        """A recipe's name, with the groups where another option is chosen than its own.

        Raises UsageError where a recipe file says otherwise.
        """
        name, file = composed.choices["recipe"], composed.labels
        if name not in self._recipes:
            found = self._composer.without_file().compose([f'recipe="{name}"'])
            self._recipes[name] = {group: found.choices[group] for group in STEP_GROUPS if group in found.chosen}
        changed = [group for group, option in self._recipes[name].items() if composed.choices.get(group) != option]
        label = changed_label(name, changed)
        if file is not None and "recipe" in file.changed:
            odd = (set(file.changed["recipe"]) ^ set(changed)) & file.changed.keys()  # of what is not chosen anew
            if odd:
                raise UsageError(
                    f"--recipe {file.file}: choices.recipe: the options of recipe={name} are changed in "
                    f'{", ".join(changed) or "no group"}. Write recipe: "{label}".'
                )
        return label

    def _changed(self, cell: Cell, group: str, option: str) -> dict[str, tuple[Any, Any]]:
        """By key below the group the option's value and the cell's, where they are not the same."""
        if group in NO_VALUES or ANY.get(group) == option:
            return {}
        if (group, option) not in self._options:
            read = self._composer.read_option
            self._options[group, option] = merged_option(lambda name: read(group, name), option)
        wanted, keys = self._options[group, option], STANDS_FOR.get(group)
        holder = cell.recipe if group in Recipe.model_fields else cell
        has = getattr(holder, group).model_dump(mode="json")
        if group == "model":
            wanted, has = _as_resolved(wanted, has["weights"]), {**has, "cascade": [m["name"] for m in has["cascade"]]}
        if group == "quality":  # some models have prompts of their own
            wanted = resolve_quality(wanted, cell.recipe.model.model_dump(mode="json"), frozenset())
        pairs = _differing({key: value for key, value in wanted.items() if keys is None or key in keys}, has)
        return {key: both for key, both in pairs if both[0] is not None or group not in FILLED_IN}

    def _unknown(self, file: FileLabels | None, group: str, option: str, cell: Cell) -> str:
        names = self._composer.options(group)
        where = "" if file is None else f"--recipe {file.file}: choices.{group}: "
        return (
            f"{where}there is no option {group}={option} here.{did_you_mean(option, names)} "
            f"{self._remedy(group, cell)}; or give the config folder that has it with --config-dir."
        )

    def _unlike(self, file: FileLabels, group: str, option: str, cell: Cell, key: str) -> str:
        """Of a label whose ``key`` is said to be changed and is not, or the other way round."""
        found = self._changed(cell, group, option)
        if key in found:
            wanted, has = (value_in_words(value) for value in found[key])
            fact = f"the file has {group}.{key}={has}, and {group}={option} has {wanted}"
        else:
            fact = f"{key} is said to be changed, and is what {group}={option} has"
        return f"--recipe {file.file}: choices.{group}: {fact}. {self._remedy(group, cell, option)}."

    def _remedy(self, group: str, cell: Cell, option: str | None = None) -> str:
        """The label that the values have: an option's that has them all, else with what is changed of one."""
        others = [(name, self._changed(cell, group, name)) for name in self._composer.options(group)]
        same = [name for name, changed in others if not changed and ANY.get(group) != name]
        if same and group not in NO_VALUES:
            return f"These are the values of {' and of '.join(f'{group}={name}' for name in same)}: write '{same[0]}'"
        if group in NO_VALUES:
            return f"Write one of {', '.join(self._composer.options(group))}"
        near = option or min(others, key=lambda pair: ("kind" in pair[1], len(pair[1])))[0]
        return f'If it is meant, write {group}: "{changed_label(near, self._changed(cell, group, near))}"'


def _as_resolved(model: dict[str, Any], weights: str) -> dict[str, Any]:
    """A model option with what is customary of its weights."""
    known = weights != "tiny" or has_tiny(model.get("architecture"))
    return with_tiny_model_values({**model, "weights": weights}, frozenset()) if known else model


def _odd(said: Sequence[str], found: Mapping[str, Any], prefix: str, typed: frozenset[str]) -> list[str]:
    """The keys that are said to be changed and are not, or the other way round, but for those of the command line."""

    def is_typed(key: str) -> bool:
        name = f"{prefix}{key}"
        return any(f"{name}.".startswith(f"{word}.") or word.startswith(f"{name}.") for word in typed)

    return [key for key in (*found, *said) if (key in found) != (key in said) and not is_typed(key)]


def _differing(wanted: Mapping[str, Any], has: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in wanted.items():
        mine = has.get(key)
        if isinstance(value, Mapping) and isinstance(mine, Mapping):
            yield from _differing(value, mine, f"{prefix}{key}.")
        elif value != mine:
            yield f"{prefix}{key}", (value, mine)
