"""What a failed validation means, in the words of the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from diffopt.recipe.recipe import STEP_GROUPS
from diffopt.schema.words import did_you_mean, flatten_to_dotted_keys, value_in_words
from diffopt.steps.plugins import plugins_left_out

SURROGATE = re.compile("[\ud800-\udfff]")


def explain_invalid_recipe(
    error: ValidationError, *, prefix: str = "", written: Mapping[str, str] | None = None
) -> str:
    """One paragraph: every offending key, its value, what is valid.

    Keys are those of the command line: ``recipe.`` and the tags of unions are left out, ``prefix`` is put before.

    Args:
        written: by the key of the record, the key that somebody wrote its value at, where that is another.
    """
    details = error.errors(include_url=False)
    inner = {detail["loc"][:-1] for detail in details}  # a list whose items are wrong also counts as too short
    kept = [detail for detail in details if not (detail["type"] == "too_short" and detail["loc"] in inner)]
    return " ".join(dict.fromkeys(_one(dict(detail), prefix, written or {}) for detail in kept))


def groups_of_invalid_recipe(error: ValidationError) -> list[str]:
    """The config groups that the offending keys belong to."""
    return list(dict.fromkeys(_key(detail["loc"]).split(".")[0] for detail in error.errors(include_url=False)))


def _one(detail: dict[str, Any], prefix: str, written: Mapping[str, str]) -> str:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    key = _key((*([prefix] if prefix else []), *detail["loc"]))
    key = key if kind == "missing" else written.get(key, key)  # what is missing was written nowhere
    if kind == "json_invalid":
        return _not_json(str(value), prefix, str(context["error"]))
    if kind == "value_error":
        return f"{context['error']}."
    if kind == "extra_forbidden":
        return f"'{key}' is not a key here."
    if kind == "missing":
        return f"'{key}' is missing; an option's YAML lists all of its keys."
    if kind == "union_tag_invalid":
        tags = [tag.strip().strip("'") for tag in str(context["expected_tags"]).split(",")]
        hint = did_you_mean(str(context["tag"]), tags)
        hint += f" Kinds of {key} are {', '.join(tags)}."
        hint += "".join(f" It may be another package's: {left}." for left in plugins_left_out())
        return f"{key}.kind={context['tag']}: there is no such kind.{hint}"
    if kind == "union_tag_not_found":
        return f"'{key}' has no 'kind' that says which step it is."
    if kind == "literal_error":
        return f"{key}={_short_text(value)}: must be {context['expected']}."
    if kind == "tuple_type":
        return f"{key}={_short_text(value)}: must be a list, such as [{'' if value is None else _short_text(value)}]."
    if kind == "string_type":
        scalar = isinstance(value, bool | int | float)  # which YAML and Hydra read where nothing is quoted
        return f"{key}={_short_text(value)}: must be a text{'; put it in quotes' if scalar else ''}."
    if kind == "too_short" and not value:
        return f"{key}={_short_text(value)}: must not be empty."
    return f"{key}={_short_text(value)}: {detail['msg'][0].lower()}{detail['msg'][1:]}."


def _not_json(text: str, prefix: str, error: str) -> str:
    """Of data that JSON cannot have: most often a file's name with bytes that Python could not decode."""
    for key, value in flatten_to_dotted_keys(json.loads(text), f"{prefix}." if prefix else ""):
        if found := SURROGATE.search(shown := value_in_words(value)):
            near = shown if len(shown) <= 60 else f"...{shown[max(0, found.start() - 30) :][:57]}"
            return f"{key}={near}: recipes and rows are UTF-8, and this is not; name the file otherwise."
    return f"{prefix or 'the recipe'} has what no file of a recipe can have: {error}."


def _key(location: tuple[int | str, ...]) -> str:
    parts = [part for part in location if part != "recipe"]
    if len(parts) >= 2 and parts[0] in STEP_GROUPS:
        parts = [parts[0], *parts[2:]]  # the second part is the tag of the union
    return ".".join(str(part) for part in parts)


def _short_text(value: Any) -> str:
    word = value_in_words(value)
    return word if len(word) <= 60 else word[:57] + "..."
