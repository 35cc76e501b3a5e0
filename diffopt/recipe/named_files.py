"""The places of a configuration that name a file or a folder. Whoever treats them all, treats these."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from diffopt.models.lora import FILES
from diffopt.models.pictures import is_picture_file
from diffopt.recipe.labels import option_of_label
from diffopt.schema.words import shell_word
from diffopt.schema.workload import PICTURES
from diffopt.steps.attention.hub_kernels import shipped_kernel_repositories

if TYPE_CHECKING:
    from diffopt.recipe.cell import Cell


class NamedFile(NamedTuple):
    """One place: its key on the command line, and the mapping and the key in it that hold the path."""

    typed: str
    holder: dict[str, Any]
    key: str

    @property
    def path(self) -> str:
        path: str = self.holder[self.key]
        return path


def files_named_by_recipe(sections: Mapping[str, Any]) -> Iterator[NamedFile]:
    """Where the sections ``model``, ``lora``, ``workload`` and ``quality`` name one, composed or resolved.

    Values are left as found.
    Names of pictures that diffopt brings along are no files. The folders of later stages stand in a list, whose key is
    all that the command line has for them.
    """
    for place in _all(sections):
        given = place.holder.get(place.key)
        if isinstance(given, str) and (is_picture_file(given) or not place.typed.startswith(_PICTURES)):
            yield place


_PICTURES = tuple(f"workload.{name}" for name in PICTURES)


def _all(sections: Mapping[str, Any]) -> Iterator[NamedFile]:
    model, lora, workload = (sections.get(name) for name in ("model", "lora", "workload"))
    if isinstance(workload, dict):
        yield NamedFile("workload.prompts_file", workload, "prompts_file")
        for name in PICTURES:
            if isinstance(picture := workload.get(name), dict):
                yield NamedFile(f"workload.{name}.path", picture, "path")
            else:
                yield NamedFile(f"workload.{name}", workload, name)
    if isinstance(quality := sections.get("quality"), dict):
        yield NamedFile("quality.prompts_file", quality, "prompts_file")
    if isinstance(lora, dict):
        yield from (NamedFile(f"lora.{name}", lora, name) for name in FILES)
    yield from _of_model(model, "model.path")


def _of_model(model: Any, typed: str) -> Iterator[NamedFile]:
    if not isinstance(model, dict):
        return  # in a cascade: the name of an option, which is composed by itself
    yield NamedFile(typed, model, "path")
    stages = model.get("cascade")
    for stage in stages if isinstance(stages, list) else ():
        yield from _of_model(stage, "model.cascade")


INTERPRETER = "runtime.python"


def kernel_keys(attention: Any) -> list[str]:
    """Keys of a hub kernel that somebody has to stand for: what is run, unless diffopt's own options name it.

    The commit is among them: on the hub, anybody can put a commit of theirs into a repository's proposals.
    """
    hub = attention.get("hub") if isinstance(attention, Mapping) else None
    if not isinstance(hub, Mapping):
        return []
    keys = [] if hub.get("repository") in shipped_kernel_repositories() else ["repository"]
    if hub.get("trust_remote_code") not in (None, False):
        keys += ["revision", "trust_remote_code"]
    return [f"attention.hub.{key}" for key in keys]


def recipe_file_additions(cell: Cell, sections: Mapping[str, Any]) -> list[str]:
    """The words that a reader of this cell's recipe file adds to the command.

    Args:
        sections: the recipe and the workload as the file has them; what is absolute there may lie anywhere.
    """
    data = {**sections, "runtime": cell.runtime.model_dump()}
    keys = [INTERPRETER, *kernel_keys(sections["attention"])]
    values = [(key, holder.get(leaf)) for key in keys for holder, leaf in [holder_of(data, key)]]
    words = [shell_word(key, value) for key, value in values if value is not None]
    return words + unique_words(
        override_that_names_file(p, cell.choices) for p in files_named_by_recipe(sections) if os.path.isabs(p.path)
    )


def is_inside_recipe_folder(path: Path, base: Path) -> bool:
    """Whether a path lies below ``base`` after all links, with no name on the way that begins with a dot."""
    try:
        parts = path.resolve().relative_to(base.resolve()).parts
    except (ValueError, OSError, RuntimeError):  # elsewhere; links in a circle
        return False
    return not any(part.startswith(".") for part in parts)


def override_that_names_file(place: NamedFile, choices: Mapping[str, str]) -> str:
    """What names the file on the command line; a later stage's folder goes with its model's option."""
    if place.typed == "model.cascade":
        return shell_word("model", option_of_label(choices.get("model", "NAME")))
    return shell_word(place.typed, place.path)


def holder_of(data: Mapping[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The mapping that has the last part of a dotted key, empty where there is none; and that part."""
    *parents, leaf = key.split(".")
    node: Any = data
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
    return (node if isinstance(node, dict) else {}), leaf


def unique_words(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))
