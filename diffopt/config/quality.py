"""The composed ``quality`` with its prompts: those of a file, of the option, or those that the model understands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffopt.config.workload import checked_text, read_prompts
from diffopt.errors import UsageError

OF_YAML = ("prompts_file", "prompts_of_models")  # keys of an option that a resolved one has not


def resolve_quality(data: Mapping[str, Any], model: Mapping[str, Any], typed: frozenset[str]) -> dict[str, Any]:
    """The keys of :class:`Quality` from those of a YAML of the group; of a resolved one, the same.

    Values of the wrong type are left as they are, for what validates the result.

    Args:
        data: the composed ``quality``; the keys of OF_YAML may be missing.
        model: the resolved ``model``.
        typed: keys that the command line sets itself; prompts among them count for every model.

    Raises:
        UsageError: a file of prompts is not there or not what it should be; it and prompts are both typed.
    """
    found = {key: value for key, value in data.items() if key not in OF_YAML}
    if {"quality.prompts", "quality.prompts_file"} <= typed:
        raise UsageError("quality.prompts and quality.prompts_file are both given; leave one out.")
    if (file := data.get("prompts_file")) is not None and "quality.prompts" not in typed:
        return {**found, "prompts": read_prompts(file, "quality.prompts_file")}
    own = data.get("prompts_of_models")
    if "quality.prompts" not in typed and isinstance(own, Mapping) and model.get("architecture") in own:
        found["prompts"] = own[model["architecture"]]
    prompts = found.get("prompts")
    for prompt in prompts if isinstance(prompts, list) else ():
        checked_text(prompt, "quality.prompts")
    return found
