"""Shipped options as steps, read without Hydra."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from diffopt.machine import plain_yaml
from diffopt.machine.paths import shipped_conf
from diffopt.schema.step import Step, kinds


@cache
def shipped_step(group: str, option: str) -> Step | None:
    """A shipped option as a step; None when there is none of that name."""
    if not (shipped_conf() / group / f"{option}.yaml").is_file():
        return None
    data = shipped_data(group, option)
    step: Step = kinds(group)[data["kind"]].model_validate_json(json.dumps(data))
    return step


def shipped_data(group: str, option: str) -> dict[str, Any]:
    """The keys of an option's YAML on those of the siblings that it extends."""
    own, _ = plain_yaml.read(shipped_conf() / group / f"{option}.yaml")
    siblings = [name for name in own.pop("defaults", []) if name != "_self_"]
    extended = {key: value for name in siblings for key, value in shipped_data(group, name).items()}
    return {**extended, **own}
