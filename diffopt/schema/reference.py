"""Which row of a study the others are compared with, as it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from diffopt.errors import UsageError
from diffopt.schema.words import value_in_words


@dataclass(frozen=True)
class Reference:
    """Which row of a study the others are compared with."""

    kind: Literal["auto", "plain", "recipe", "cell", "first"]
    name: str = ""  # of the recipe, or the id of the cell
    options: tuple[tuple[str, str], ...] = ()  # of a recipe: by group of steps the option that it has by itself

    @classmethod
    def from_text(cls, text: Any, key: str = "reference") -> Reference:
        """One of the words of ``conf/config.yaml``. Raises UsageError, which names ``key``."""
        kind, colon, name = str(text).partition(":")
        if kind in ("auto", "plain", "first") and not colon:
            return cls(cast(Any, kind))
        if kind in ("recipe", "cell") and name:
            return cls(cast(Any, kind), name)
        raise UsageError(f"{key}={value_in_words(text)}: write recipe:NAME, cell:ID, first, plain or auto.")

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind

    def may_be(self, choices: Mapping[str, str], cell_id: str) -> bool:
        """Whether a cell of these options and this id is the one that is named; any may be where none is."""
        if self.kind == "recipe":  # a cell that began with it and has other options besides is not the recipe
            return all(choices.get(group) == option for group, option in self.options)
        return self.kind != "cell" or cell_id == self.name


AUTO, PLAIN, FIRST = Reference("auto"), Reference("plain"), Reference("first")
