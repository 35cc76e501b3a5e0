"""What ``show`` prints and ``diff`` compares: a cell as YAML, to be committed and read back with ``--recipe``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from diffopt.recipe.cell import Cell
from diffopt.recipe.named_files import files_named_by_recipe, is_inside_recipe_folder, recipe_file_additions
from diffopt.schema.words import flatten_to_dotted_keys


def recipe_to_yaml(cell: Cell, base: Path | None = None) -> str:
    """The resolved cell with the choices that led to it. ``read_lock`` gives the same ids back.

    Args:
        base: the folder of the file that this becomes; what lies below is named relative to it. None: by its path here.
    """
    data = cell.model_dump(mode="json")
    sections = {**data["recipe"], "workload": data["workload"]}
    for place in files_named_by_recipe(sections):
        if base is not None and is_inside_recipe_folder(path := Path(place.path), base):
            place.holder[place.key] = f"./{path.resolve().relative_to(base.resolve())}"
    command = " ".join(["diffopt run --recipe THIS_FILE", *recipe_file_additions(cell, sections)])
    header = f"# diffopt recipe {cell.recipe.id}, cell {cell.id}\n# Read it back with: {command}\n"
    if not cell.recipe.model.pinned:
        header += f"# model.revision={cell.recipe.model.revision}: not pinned to a commit, its weights may change\n"
    data["choices"] = dict(sorted(cell.choices.items()))
    return header + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


def recipe_differences(before: Cell, after: Cell) -> list[tuple[str, Any, Any]]:
    """``(key, before, after)`` of every value that differs, keys as on the command line; a missing one is ``None``."""
    old, new = (
        dict(flatten_to_dotted_keys(cell.model_dump(mode="json", exclude={"choices"}))) for cell in (before, after)
    )
    keys = list(dict.fromkeys((*old, *new)))
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]
