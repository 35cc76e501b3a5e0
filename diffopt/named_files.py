"""The places of a configuration that name a file or a folder. Whoever treats them all, treats these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from diffopt.input_pictures import is_file
from diffopt.lora_files import FILES
from diffopt.workload import PICTURES


class Place(NamedTuple):
    """One place: its key on the command line, and the mapping and the key in it that hold the path."""

    typed: str
    holder: dict[str, Any]
    key: str

    @property
    def path(self) -> str:
        path: str = self.holder[self.key]
        return path


def places(sections: Mapping[str, Any]) -> Iterator[Place]:
    """Where the sections ``model``, ``lora`` and ``workload`` name one, composed or resolved; values are left as found.

    Names of pictures that diffopt brings along are no files. The folders of later stages stand in a list, whose key is
    all that the command line has for them.
    """
    for place in _all(sections):
        given = place.holder.get(place.key)
        if isinstance(given, str) and (is_file(given) or not place.typed.startswith(_PICTURES)):
            yield place


_PICTURES = tuple(f"workload.{name}" for name in PICTURES)


def _all(sections: Mapping[str, Any]) -> Iterator[Place]:
    model, lora, workload = (sections.get(name) for name in ("model", "lora", "workload"))
    if isinstance(workload, dict):
        yield Place("workload.prompts_file", workload, "prompts_file")
        for name in PICTURES:
            if isinstance(picture := workload.get(name), dict):
                yield Place(f"workload.{name}.path", picture, "path")
            else:
                yield Place(f"workload.{name}", workload, name)
    if isinstance(lora, dict):
        yield from (Place(f"lora.{name}", lora, name) for name in FILES)
    yield from _of_model(model, "model.path")


def _of_model(model: Any, typed: str) -> Iterator[Place]:
    if not isinstance(model, dict):
        return  # in a cascade: the name of an option, which is composed by itself
    yield Place(typed, model, "path")
    stages = model.get("cascade")
    for stage in stages if isinstance(stages, list) else ():
        yield from _of_model(stage, "model.cascade")
