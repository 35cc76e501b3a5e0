"""Rows as files: where they lie in a study, and how one is read, which may come from anybody."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diffopt.errors import UsageError
from diffopt.machine.files import LINK
from diffopt.machine.reading import MIB, read_file
from diffopt.recipe.cell import Cell
from diffopt.recipe.explain import explain_invalid_recipe
from diffopt.recipe.recipe import STEP_GROUPS, Recipe
from diffopt.results.result import SCHEMA_VERSION, Result
from diffopt.schema.workload import PICTURES

LONGEST_ROW = 64 * MIB
LONGEST_SAID = 200  # letters of an error about a row, which may have names of any length
LONGEST_NUMBER = 20  # letters of an integer: no figure, and no seed, is beyond 64 bits
REMEDY = "Running the cell into this study again replaces it."
STAYS = "It stays as it is, and its cell cannot be run into this study: move it away, or give another study=."
ID = re.compile(r"[0-9a-f]{12}")


def files_of_rows(folder: Path, tell: Callable[[UsageError], None], depth: int = 2) -> Iterator[Path]:
    """What lies in the place of a row so many folders below this one, in order.

    Not by glob, for which a folder that may not be entered is empty.

    Args:
        tell: is told of such folders, of links, and of what lies in a folder's place under the name of an id.
    """
    try:
        entries = [(path, path.is_symlink()) for path in sorted(folder.iterdir())]
    except FileNotFoundError:
        return
    except NotADirectoryError:
        if ID.fullmatch(folder.name):
            tell(UsageError(f"{folder} is no folder, and so has no row. Move it away."))
        return
    except OSError as error:
        tell(UsageError(f"{folder} cannot be read: {error.strerror}."))
        return
    for path, is_link in entries:
        if depth and is_link:
            tell(UsageError(LINK.format(path)))
        elif depth:
            yield from files_of_rows(path, tell, depth - 1)
        elif path.name == "result.json":
            yield path


def is_plain_name(name: str) -> bool:
    """Whether a name, of a file or a folder, leads nowhere else."""
    return name not in ("", ".", "..") and not {"/", "\0"} & {*name}


class RowStays(UsageError):
    """What lies in the place of a row must not be replaced: it is not ours, or nobody can tell what it is."""


def read_result(path: Path) -> Result:
    """Read a ``result.json``.

    Raises:
        RowStays: it is of another schema version, no file, too large to be one of ours, or must not be read.
        UsageError: it is not a result.
        FileNotFoundError: there is none.
    """
    text = _text_of_row(path)
    try:
        data = json.loads(text, parse_int=_whole_number, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as a result: {error!s:.{LONGEST_SAID}}. {REMEDY}") from error
    found = data.get("schema_version") if isinstance(data, dict) else None
    if found is not None and found != SCHEMA_VERSION:
        raise RowStays(
            f"{path} has schema version {found!s:.40}, this diffopt reads {SCHEMA_VERSION}: "
            f"read it with the diffopt that wrote it. {STAYS}"
        )
    try:
        result = Result.model_validate_json(text)
    except ValidationError as error:
        raise _complaint(path, error) from error
    if lacking := _lacks(result.cell):
        raise UsageError(f"{path} is not a result of diffopt: its cell has no {lacking}. {REMEDY}")
    try:
        cell_of_row(result.cell)
    except ValidationError as error:
        said = f"{explain_invalid_recipe(error):.{2 * LONGEST_SAID}}"
        raise UsageError(f"{path} has a recipe that this diffopt does not know: {said} {REMEDY}") from error
    return result


def cell_of_row(data: Mapping[str, Any]) -> Cell:
    """The cell of a row's data without its runtime, whichever diffopt wrote it.

    Raises ValidationError when this diffopt has no such recipe any more.
    """
    return Cell.from_plain({key: part for key, part in data.items() if key != "runtime"})


def _whole_number(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} digits is no figure")
    return int(text)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _complaint(path: Path, error: ValidationError) -> UsageError:
    """What is wrong with a row. One that has but more than we know is of a newer diffopt."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    where = ".".join(str(part) for part in found[0]["loc"]) or "the file"
    said = f"{path} is not a result of diffopt: " + f"{where}: {found[0]['msg']}"[:LONGEST_SAID]
    if all(each["type"] == "extra_forbidden" for each in found):
        return RowStays(f"{said}. Maybe a newer one wrote it. {STAYS}")
    return UsageError(f"{said}. {REMEDY}")


def _text_of_row(path: Path) -> str:
    try:
        return read_file(path, str(path), LONGEST_ROW, follow=False).decode("utf-8")
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} cannot be read as a result: {error!s:.{LONGEST_SAID}}. {REMEDY}") from error
    except UsageError as error:
        raise RowStays(f"{error} {STAYS}") from error
    except OSError as error:
        raise RowStays(f"{path} cannot be read: {error.strerror}. {STAYS}") from error


def _lacks(cell: dict[str, Any]) -> str | None:
    """The first part that a row's ``cell`` must have and has not; reports compare these parts."""
    recipe = cell.get("recipe")
    if not isinstance(recipe, dict):
        return "recipe"
    wanted = [
        ("recipe." + name, recipe.get(name)) for name, field in Recipe.model_fields.items() if field.is_required()
    ]
    wanted += [(name, cell.get(name)) for name in ("workload", "measure")]
    absent = [name for name, part in wanted if not isinstance(part, dict)]
    if absent:
        return absent[0]
    keys = [(f"recipe.{group}", recipe[group], "kind") for group in STEP_GROUPS if group in recipe]
    keys += [("recipe.model", recipe["model"], "dtype")]
    keys += [("runtime", cell["runtime"], "name")] if "runtime" in cell else []
    keys += [(f"workload.{name}", part, "content") for name in PICTURES if (part := cell["workload"].get(name))]
    return next((f"{name}.{key}" for name, part, key in keys if not isinstance(part, dict) or key not in part), None)
