"""Options of the repository as steps."""

from __future__ import annotations

from typing import Any

from support.places import CONF as CONF

import diffopt.steps  # noqa: F401  # registers the kinds, also in a process of its own
from diffopt.recipe.options import shipped_option as values
from diffopt.schema.step import Site, Step, registered_step_kinds


def step(group: str, name: str, **changes: Any) -> Step:
    """The step that ``GROUP=NAME GROUP.KEY=VALUE …`` chooses."""
    data = {**values(group, name), **changes}
    return registered_step_kinds(group)[data["kind"]].from_plain(data)


def apply(pipe: Any, site: Site, *steps: Step) -> None:
    """Apply in the order of a plan."""
    for one in sorted(steps, key=lambda s: s.order):
        assert not one.problems(site)
        one.apply(pipe, site)
