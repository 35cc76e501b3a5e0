"""Options of the repository as steps: the YAML with its parent, without Hydra."""

from __future__ import annotations

import json
from typing import Any

import yaml
from support.places import CONF as CONF

from diffopt.schema.step import Site, Step, kinds


def values(group: str, name: str) -> dict[str, Any]:
    """The option's values; nested blocks are merged with the parent's, as Hydra does."""
    own = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    merged: dict[str, Any] = {}
    for parent in (p for p in own.pop("defaults", []) if p != "_self_"):
        merged = values(group, parent)
    for key, value in own.items():
        merged[key] = {**merged[key], **value} if isinstance(value, dict) and merged.get(key) else value
    return merged


def step(group: str, name: str, **changes: Any) -> Step:
    """The step that ``GROUP=NAME GROUP.KEY=VALUE …`` chooses."""
    data = {**values(group, name), **changes}
    return kinds(group)[data["kind"]].model_validate_json(json.dumps(data))


def apply(pipe: Any, site: Site, *steps: Step) -> None:
    """Apply in the order of a plan."""
    for one in sorted(steps, key=lambda s: s.order):
        assert not one.problems(site)
        one.apply(pipe, site)
