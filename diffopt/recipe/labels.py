"""What tells the cells of a sweep apart, in the words of the command line."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from diffopt.recipe.recipe import GROUP_ORDER
from diffopt.schema.words import flatten_to_dotted_keys, harmless_line, value_in_words
from diffopt.schema.workload import PICTURES

# What explains a value that a file decides: its name tells the content, and the content tells the rest. A model's
# files also follow from whether weights are read or drawn, which somebody asked for and no file decides.
_FILES = {"lora.content": "lora.path", "lora.swap_content": "lora.swap_path"} | {
    f"workload.{name}.content": f"workload.{name}.path" for name in PICTURES
}
_ASKED = ("model.path", "model.weights")
_FOLLOWS = (
    {content: (path,) for content, path in _FILES.items()}
    | {"model.content": _ASKED}
    | dict.fromkeys(("lora.components", "lora.rank", "lora.target_rank"), ("lora.content", "lora.swap_content"))
)

CHANGED = re.compile(r"(.+?) \(changed: (.+)\)", re.DOTALL)

Choices = Mapping[str, str]
Point = Mapping[str, Any]  # a cell as plain data, with its choices


def changed_label(option: str, keys: Iterable[str]) -> str:
    """An option whose values are not all its own: ``sdpa (changed: backend)``; its name where they are."""
    named = ", ".join(keys)
    return f"{option} (changed: {named})" if named else option


def option_of_label(label: str) -> str:
    """The option's name."""
    found = CHANGED.fullmatch(label)
    return label if found is None else found[1]


def changed_keys_of_label(label: str) -> tuple[str, ...]:
    """The keys, below the group, whose values are not the option's."""
    found = CHANGED.fullmatch(label)
    return () if found is None else tuple(key.strip() for key in found[2].split(","))


def cell_labels(points: Sequence[Point]) -> list[dict[str, str]]:
    """For each point the options and values in which the points differ.

    A value is named only where the choice of options does not explain it: ``compile.mode`` differs between
    ``compile=default`` and ``compile=max_autotune``, but it is the option that was chosen.
    """
    labels: list[Choices] = [point["choices"] for point in points]
    chosen = [{group: option_of_label(label) for group, label in choices.items()} for choices in labels]
    flat = [
        dict(flatten_to_dotted_keys({key: part for key, part in point.items() if key != "choices"})) for point in points
    ]
    varying = [group for group in GROUP_ORDER if len({choices.get(group) for choices in chosen}) > 1]
    keys = [key for key in dict.fromkeys(key for data in flat for key in data) if _unexplained(key, chosen, flat)]
    return [
        {
            **{group: _unless_named(group, choices[group], keys) for group in varying if group in choices},
            **{key: _short_label(key, data[key]) for key in keys if key in data},
        }
        for choices, data in zip(labels, flat, strict=True)
    ]


def _unless_named(group: str, label: str, keys: Collection[str]) -> str:
    """A label without the changed keys whose values are named beside it."""
    rest = [key for key in changed_keys_of_label(label) if f"{group}.{key}" not in keys]
    return changed_label(option_of_label(label), rest)


def _short_label(key: str, value: Any) -> str:
    """A value as a label: a hash by its beginning, a picture or a LoRA by its file's name."""
    if key.endswith("content"):
        return value_in_words(value)[:12]
    named = PurePath(value).name if key in _FILES.values() and value is not None else value_in_words(value)
    return harmless_line(named)


def cell_label_line(label: Mapping[str, str]) -> str:
    """``compile=default attention=sdpa``."""
    return harmless_line(" ".join(f"{key}={value}" for key, value in label.items()))


def _unexplained(key: str, chosen: Sequence[Choices], flat: Sequence[Mapping[str, Any]]) -> bool:
    """Whether ``key`` differs between points of the same options (its own group's, and the model's).

    What a model's files decide is explained by them: by the folder's path, else by what was asked of the weights, else
    by their content. So is a picture, and what is read from a LoRA's file.
    """
    group = key.split(".")[0]
    seen: dict[tuple[Any, ...], str] = {}
    for choices, data in zip(chosen, flat, strict=True):
        folder = None if key in (*_ASKED, "model.content") else value_in_words(data.get("model.content"))
        file = tuple(_short_label(name, data.get(name)) for name in _FOLLOWS.get(key, ()))
        same = (choices.get(group), choices.get("model"), folder, file)
        value = value_in_words(data.get(key))
        if seen.setdefault(same, value) != value:
            return True
    return False
