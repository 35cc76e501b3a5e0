"""The one reader of shipped options without Hydra, and the rule by which an option extends its siblings: Hydra's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

from diffopt.errors import UsageError
from diffopt.machine import plain_yaml
from diffopt.machine.paths import shipped_conf
from diffopt.schema.step import Step, registered_step_kinds


def merged_option(read: Callable[[str], dict[str, Any]], option: str, inside: tuple[str, ...] = ()) -> dict[str, Any]:
    """The data of an option on that of the siblings it extends; composing each one by Hydra takes seconds in all.

    The siblings stand in its ``defaults`` in the order in which they are merged, a later one onto those before it, the
    option itself (``_self_``) last where it does not say otherwise.

    Args:
        read: gives the content of an option's file as it stands, a copy that may be changed.

    Raises:
        UsageError: the options extend each other in a circle.
    """
    if option in inside:
        raise UsageError("These options extend each other in a circle (their defaults lists).")
    own = read(option)
    names = own.pop("defaults", [])
    found: dict[str, Any] = {}
    for name in names if "_self_" in names else [*names, "_self_"]:
        found = _onto(found, own if name == "_self_" else merged_option(read, name, (*inside, option)))
    return found


def _onto(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Mappings are merged at every depth; whatever else is above, a list or null too, replaces what is below."""
    both = {key: _onto(below[key], value) for key, value in above.items() if _mappings(below.get(key), value)}
    return {**below, **above, **both}


def _mappings(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def option_names(group: str) -> list[str]:
    """The shipped options of a group."""
    return sorted(path.stem for path in (shipped_conf() / group).glob("*.yaml"))


def shipped_option(group: str, option: str) -> dict[str, Any]:
    """The values of a shipped option, those of the siblings that it extends among them. A sweep is an option, too."""
    return merged_option(lambda name: own_values_of_option(group, name), option)


def own_values_of_option(group: str, option: str) -> dict[str, Any]:
    """What the file of a shipped option has itself."""
    return copy.deepcopy(_yaml_file(f"{group}/{option}.yaml"))


def customary_options() -> dict[str, str]:
    """Of each group the option that is taken where nobody chooses."""
    lines = _yaml_file("config.yaml")["defaults"]
    return {group: option for line in lines if isinstance(line, dict) for group, option in line.items()}


@cache
def shipped_step(group: str, option: str) -> Step | None:
    """A shipped option as a step; None when there is none of that name."""
    if option not in option_names(group):
        return None
    data = shipped_option(group, option)
    step: Step = registered_step_kinds(group)[data["kind"]].from_plain(data)
    return step


@cache
def _yaml_file(name: str) -> dict[str, Any]:
    return plain_yaml.read_plain_yaml(shipped_conf() / name)[0]
