"""The list of cells of scripts/gpu_matrix, and what of it is still to be run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from diffopt import plain_yaml
from diffopt.cell import Cell
from diffopt.compose import Composer
from diffopt.errors import UsageError
from diffopt.explain import explain
from diffopt.resolve import Request, Resolver
from diffopt.result import Result
from diffopt.step import Frozen
from diffopt.study import Study

SHIPPED = Path(__file__).with_name("gpu_matrix.yaml")


class Entry(Frozen):
    """One cell of the list: the words of ``diffopt run``, and a guess of how long it takes."""

    words: tuple[str, ...]
    seconds: Annotated[float, Field(gt=0)]


class Matrix(Frozen):
    """The list, most valuable first; ``common`` stands before the words of each cell."""

    common: tuple[str, ...]
    cells: tuple[Entry, ...]


@dataclass(frozen=True)
class Point:
    """An entry with the cell that it composes to."""

    entry: Entry
    request: Request

    @property
    def cell(self) -> Cell:
        return self.request.cell

    @property
    def words(self) -> str:
        return " ".join(self.entry.words) or f"cell {self.cell.id}"


def read_matrix(path: Path) -> Matrix:
    """A list of cells. Raises UsageError for a file that is none."""
    data, _ = plain_yaml.read(path)
    try:
        return Matrix.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise UsageError(f"{path} is not a list of cells: {explain(error)}") from error


def points(matrix: Matrix, words: Sequence[str]) -> list[Point]:
    """Every cell of the list, in its order; ``words`` of the command line come last and win. Distinct by id."""
    composer = Composer([])
    resolver = Resolver(composer)
    found: dict[str, Point] = {}
    for entry in matrix.cells:
        request = resolver.request(composer.compose([*matrix.common, *entry.words, *words]))
        found.setdefault(request.cell.id, Point(entry, request))
    if not found:
        raise UsageError("The list has no cells.")
    return list(found.values())


def folder_name(hardware_name: str) -> str:
    """The study's name for a GPU, such as ``nvidia-h100``; ``cpu`` for the CPU."""
    name = hardware_name.replace("_", "-")
    return name if name == "cpu" or name.startswith("nvidia-") else f"nvidia-{name}"


def ordered(todo: Sequence[Point], rows: Mapping[str, Result]) -> list[Point]:
    """What is still to be run: first what has no row or was cut off, then what failed, which may fail again."""
    begun = [p for p in todo if p.cell.id not in rows or rows[p.cell.id].status == "interrupted"]
    failed = [p for p in todo if p not in begun and not _final(rows[p.cell.id])]
    return begun + failed


def _final(result: Result) -> bool:
    """As :meth:`Study.kept` has it."""
    return result.status in ("ok", "oom") or (result.status == "refused" and result.stage == "plan")


def rows_of(study: Study, env_id: str | None) -> dict[str, Result]:
    """The study's rows by cell, of one environment; of any, where there is none to compare."""
    return {row.cell_id: row for row in study.results() if env_id in (None, row.env_id)}
