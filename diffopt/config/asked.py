"""The arguments of a call from Python, as a command line."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffopt.config.request import Request
from diffopt.config.resolve import compose_requests, make_composer
from diffopt.errors import UsageError
from diffopt.machine.paths import existing_folder, own_folders
from diffopt.schema.runtime import CURRENT

if TYPE_CHECKING:
    from diffopt.config import Composed

NOT_OF_A_CELL = {  # keys of a command line that say how cells are run and kept
    "reference": "it is for the table of a command",
    "study": "diffopt.run(cell, study=…) says where a row is kept",
    "launch": "diffopt.run launches its cells as launch=local does",
}


@dataclass(frozen=True)
class Asked:
    """The arguments of a call as a command line."""

    words: tuple[str, ...]
    lock: Path | None
    folders: tuple[Path, ...]
    trusted: tuple[Path, ...]

    @classmethod
    def from_arguments(cls, recipe: Any, overrides: Any, config_dirs: Any, trust_config_dirs: Any) -> Asked:
        """Raises UsageError for arguments of the wrong type, and for what has no meaning from Python."""
        if not isinstance(recipe, str | Path):
            raise UsageError(
                f"recipe: the name of a recipe or the path of a file is wanted, not a {type(recipe).__name__}. "
                "`diffopt show … > FILE` writes one."
            )
        words = _listed(overrides, "overrides", '["model=tiny"]', str)
        for word in words:
            if said := NOT_OF_A_CELL.get(word.split("=")[0].split(".")[0]):
                raise UsageError(f"{word} has no meaning here, leave it out: {said}.")
        folders = tuple(own_folders(_listed(config_dirs, "config_dirs", '["conf"]', str | Path), "config_dirs:"))
        listed = _listed(trust_config_dirs, "trust_config_dirs", '["conf"]', str | Path)
        trusted = tuple(existing_folder(folder, "trust_config_dirs:") for folder in listed)
        if isinstance(recipe, Path) or recipe.endswith((".yaml", ".yml")):
            return cls(words, Path(recipe), folders, trusted)
        return cls((f"recipe={recipe}", *words), None, folders, trusted)

    def composed(self) -> Composed:
        return make_composer(self.lock, self.folders, self.trusted).compose(self.words)

    def requests(self, **more: Any) -> list[Request]:
        return compose_requests(self.words, lock=self.lock, folders=self.folders, trusted=self.trusted, **more)

    def request(self, **more: Any) -> Request:
        """Of a pipeline that is made in this process."""
        (found,) = self.requests(**more)
        if found.cell.runtime != CURRENT:
            raise UsageError(
                f"runtime={found.cell.runtime.name} is another Python, and the pipeline would be made in this one. "
                f"Choose runtime={CURRENT.name}, or use diffopt.run, whose workers it starts."
            )
        return found


def _listed(given: Any, name: str, example: str, kind: Any) -> tuple[Any, ...]:
    listed = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)
    if not listed or not all(isinstance(item, kind) for item in given):
        raise UsageError(f"{name}={reprlib.repr(given)}: a list is wanted, such as {name}={example}.")
    return tuple(given)
