"""A composed config as plain data, and composing one anew out of parts of others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override, OverrideType

from diffopt.config.origins import Origins, origins_of_groups
from diffopt.config.source import OVERLAY_KEYS
from diffopt.errors import UsageError

OUTSIDE_THE_CELL = ("launch", "study", "reference")  # what a recipe file does not hold
DEPENDENT = frozenset({"recipe"} | OVERLAY_KEYS - {"defaults"})  # what a recipe lays values over does not stand alone


@dataclass(frozen=True)
class FileLabels:
    """What a recipe file calls the options whose values it has."""

    file: Path
    changed: Mapping[str, tuple[str, ...]]  # by group: the keys that it says are not the option's

    def without(self, groups: Collection[str]) -> FileLabels:
        return FileLabels(self.file, {group: keys for group, keys in self.changed.items() if group not in groups})


@dataclass(frozen=True)
class Composed:
    """One composed config as plain data, and the option that was chosen in each group."""

    data: dict[str, Any]
    choices: dict[str, str]
    typed: frozenset[str] = frozenset()  # keys that the command line sets itself, or its matrix
    chosen: frozenset[str] = frozenset()  # groups whose option the command line, a recipe or a recipe file chose
    origins: Origins = field(default_factory=dict)  # what files of others than diffopt set
    labels: FileLabels | None = None  # of a recipe file


def onto_recipe_file(file: Composed, composed: Composed, groups: Sequence[Override]) -> Composed:
    """A recipe file stands for all that was composed, but for the groups that the command line chooses anew."""
    named = {override.key_or_group for override in groups}
    if "recipe" in named:
        raise UsageError("recipe=NAME composes a recipe, --recipe FILE is one; give one of the two.")
    anew = frozenset(map(str, (*OUTSIDE_THE_CELL, *named)))
    # a group that the file lacks stays absent: the model knows if it may
    data = {**file.data, **{key: composed.data[key] for key in anew}}
    choices = {**composed.choices, **{g: o for g, o in file.choices.items() if g not in anew}}
    kept = origins_of_groups(file.origins, frozenset(file.data) - anew)
    origins = {**origins_of_groups(composed.origins, anew), **kept}
    chosen = composed.chosen | file.choices.keys()
    labels = file.labels and file.labels.without(anew)
    return Composed(data, choices, chosen=chosen, origins=origins, labels=labels)


Frame = tuple[frozenset[str], Composed]  # the groups that were named, and what was composed


class KnownOptions:
    """What was composed, by option: the data of most is the same whatever stands beside it.

    So Hydra is not asked once per combination of options.
    """

    def __init__(self) -> None:
        self._frames: dict[tuple[str, ...], list[Frame]] = {}  # by the overrides that do not stand alone
        self._alone: dict[tuple[str, str], Composed] = {}  # by group and option: that group's part and nothing else

    def keep(self, groups: Sequence[Override], found: Composed) -> None:
        """``found`` is what these overrides of groups compose to."""
        if self._frame(groups) is None:
            self._frames.setdefault(_dependent(groups), []).append((_named(groups), found))
        for group in found.choices.keys() & found.data.keys() - DEPENDENT:
            origins = origins_of_groups(found.origins, frozenset({group}))
            part = Composed({group: found.data[group]}, {group: found.choices[group]}, origins=origins)
            self._alone[group, found.choices[group]] = part

    def keep_alone(self, group: str, option: str, read: Callable[[str, str], dict[str, Any]]) -> None:
        """``read`` gives the data of an option that nobody but diffopt had a hand in; asked once."""
        if (group, option) not in self._alone:
            self._alone[group, option] = Composed({group: read(group, option)}, {group: option})

    def find(self, groups: Sequence[Override]) -> Composed | None:
        """What these overrides of groups compose to; None where one of their options is new."""
        frame = self._frame(groups)
        parts = [self._alone.get((o.key_or_group, str(o.value()))) for o in groups if stands_alone(o)]
        if frame is None or None in parts:
            return None
        data, choices, origins = dict(frame.data), dict(frame.choices), dict(frame.origins)
        for part in filter(None, parts):
            others = frozenset(key.split(".")[0] for key in origins) - part.data.keys()
            origins = {**origins_of_groups(origins, others), **part.origins}
            data |= part.data
            choices |= part.choices
        chosen = frame.chosen | _named(groups)
        return Composed(data, choices, chosen=chosen, origins=origins)

    def _frame(self, groups: Sequence[Override]) -> Composed | None:
        """One whose other groups have the option that they have without a word: these overrides say all that is not."""
        named, frames = _named(groups), self._frames.get(_dependent(groups), [])
        return next((found for others, found in frames if others <= named), None)


def _named(groups: Sequence[Override]) -> frozenset[str]:
    return frozenset(override.key_or_group for override in groups)


def _dependent(groups: Sequence[Override]) -> tuple[str, ...]:
    return tuple(str(override.input_line) for override in groups if not stands_alone(override))


def stands_alone(override: Override) -> bool:
    """Whether it chooses an option whose data is the same whatever stands beside it."""
    plain = override.type is OverrideType.CHANGE and override.package is None and isinstance(override.value(), str)
    return plain and override.key_or_group not in DEPENDENT
