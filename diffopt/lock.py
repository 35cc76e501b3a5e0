"""What ``show`` prints and ``diff`` compares: a cell as YAML, to be committed and read back with ``--recipe``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from diffopt.cell import Cell
from diffopt.labels import flatten


def to_yaml(cell: Cell, choices: Mapping[str, str]) -> str:
    """The resolved cell with the choices that led to it. ``read_lock`` gives the same ids back."""
    header = f"# diffopt recipe {cell.recipe.id}, cell {cell.id}\n# Read it back with: diffopt run --recipe THIS_FILE\n"
    if not cell.recipe.model.pinned:
        header += f"# model.revision={cell.recipe.model.revision}: not pinned to a commit, its weights may change\n"
    data = cell.model_dump(mode="json")
    body = {"choices": dict(sorted(choices.items())), **data}
    return header + yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=120)


def changes(before: Cell, after: Cell) -> list[tuple[str, Any, Any]]:
    """``(key, before, after)`` of every value that differs, keys as on the command line; a missing one is ``None``."""
    old, new = (dict(flatten(cell.model_dump(mode="json"))) for cell in (before, after))
    keys = list(dict.fromkeys((*old, *new)))
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]
