"""What ``show`` prints and ``diff`` compares: a cell as YAML, to be committed and read back with ``--recipe``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from diffopt.recipe.cell import Cell
from diffopt.recipe.named_files import files_named_by_recipe, is_inside_recipe_folder, recipe_file_additions
from diffopt.schema.words import OBEYED, flatten_to_dotted_keys, harmless_line


def recipe_to_yaml(cell: Cell, base: Path | None = None, *, ascii_only: bool = False) -> str:
    """The resolved cell with the choices that led to it. ``read_lock`` gives the same ids back.

    Args:
        base: the folder of the file that this becomes; what lies below is named relative to it. None: by its path here.
        ascii_only: write other signs as their escapes, of which the same texts are read.
    """
    data = cell.model_dump(mode="json")
    sections = {**data["recipe"], "workload": data["workload"]}
    for place in files_named_by_recipe(sections):
        if base is not None and is_inside_recipe_folder(path := Path(place.path), base):
            place.holder[place.key] = f"./{path.resolve().relative_to(base.resolve())}"
    command = " ".join(["diffopt run --recipe THIS_FILE", *recipe_file_additions(cell, sections)])
    comments = [f"diffopt recipe {cell.recipe.id}, cell {cell.id}", f"Read it back with: {command}"]
    if not cell.recipe.model.pinned:
        comments.append(f"model.revision={cell.recipe.model.revision}: not pinned to a commit, its weights may change")
    data["choices"] = dict(sorted(cell.choices.items()))
    header = "".join(f"# {harmless_line(comment)}\n" for comment in comments)
    return header + yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=not ascii_only, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes what a terminal would obey as its escape in double quotes, from which it is read back."""

    def analyze_scalar(self, scalar: str) -> Any:
        found = super().analyze_scalar(scalar)
        if OBEYED.search(scalar):
            found.allow_flow_plain = found.allow_block_plain = found.allow_single_quoted = found.allow_block = False
        return found

    def write_double_quoted(self, text: str, split: bool = True) -> None:
        before, self.allow_unicode = self.allow_unicode, self.allow_unicode and not OBEYED.search(text)
        super().write_double_quoted(text, split)
        self.allow_unicode = before


def recipe_differences(before: Cell, after: Cell) -> list[tuple[str, Any, Any]]:
    """``(key, before, after)`` of every value that differs, keys as on the command line; a missing one is ``None``."""
    old, new = (
        dict(flatten_to_dotted_keys(cell.model_dump(mode="json", exclude={"choices"}))) for cell in (before, after)
    )
    keys = list(dict.fromkeys((*old, *new)))
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]
