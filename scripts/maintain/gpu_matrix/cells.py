"""The list of cells of scripts/gpu_matrix, and what of it is still to be run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from diffopt.config import Composer
from diffopt.config.resolve import Request, Resolver
from diffopt.errors import UsageError
from diffopt.machine import plain_yaml
from diffopt.machine.environment import Environment
from diffopt.recipe.cell import Cell
from diffopt.recipe.explain import explain
from diffopt.results.result import Result
from diffopt.schema.record import Frozen

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
        return Matrix.from_plain(data)
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


@dataclass(frozen=True)
class Standing:
    """What the rows of a study say of a list of cells: those that are done, and what is to be run, in its order."""

    done: Mapping[str, Result]  # by the cell's id
    waiting: tuple[Point, ...]


def standing(todo: Sequence[Point], rows: Sequence[Result], where: Environment | None) -> Standing:
    """Which cells are done in an environment, and in which order the others are worth running.

    First what has no row or was cut off, then what failed, which may fail again. A row from another environment with
    the same GPU, torch and diffusers, such as one with another driver, is nearly as good as one from here: its cell is
    measured again at the end.

    Args:
        where: the environment that the cells will run in; None where there is none, and then every row is from here.
    """
    alike = _best(row for row in rows if where is None or _kind(row.environment) == _kind(where))
    here = _best(row for row in rows if where is None or row.env_id == where.id)
    done = {point.cell.id: here[point.cell.id] for point in todo if _final(here.get(point.cell.id))}

    def rank(point: Point) -> int:
        row = alike.get(point.cell.id)
        return 2 if _final(row) else 0 if row is None or row.status == "interrupted" else 1

    return Standing(done, tuple(sorted((p for p in todo if p.cell.id not in done), key=rank)))


def _kind(where: Environment) -> tuple[str | None, ...]:
    return (where.device.name, where.versions.get("torch"), where.versions.get("diffusers"))


def _best(rows: Iterable[Result]) -> dict[str, Result]:
    """A row for each cell, one that is final where there is one."""
    found: dict[str, Result] = {}
    for row in rows:
        if not _final(found.get(row.cell_id)):
            found[row.cell_id] = row
    return found


def _final(result: Result | None) -> bool:
    """As :meth:`Study.kept` has it."""
    if result is None:
        return False
    return result.status in ("ok", "oom") or (result.status == "refused" and result.phase == "plan")
