"""The pictures that cells are judged by, and what parent and worker say to each other of them. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from diffopt.machine.files import write_json
from diffopt.machine.reading import MIB, read_file
from diffopt.results.quality import Floor
from diffopt.results.result import Phase, Status
from diffopt.schema.record import Frozen

QUALITY = "quality"  # the folder of such pictures, in that of a row or of a drawing
LATENTS = "latents.safetensors"  # beside them, by the index of the picture
COMPARISONS = "comparisons.json"  # beside the plan that a worker reads


class Drawing(Frozen):
    """Pictures of one cell, or why there are none."""

    id: str
    status: Status = "ok"
    phase: Phase = "quality"
    reason: str | None = None
    pictures: tuple[str, ...] = ()  # names of the files, in the order of ``Quality.pictures``
    seconds: float | None = None


class Against(Frozen):
    """One drawing that others are compared with."""

    folder: str  # that has the pictures
    drawing: Drawing


class AskedComparisons(Frozen):
    """What a worker is to compare its cell's pictures with."""

    reference: Against | None
    reason: str | None = None  # why there is no reference
    settled: bool = True  # false: another try may make one
    own: str = ""  # the id of the cell's own pictures
    floors: dict[str, Against] = {}  # by what is changed; each is compared with the reference
    without: tuple[Floor, ...] = ()  # changes of which there are no pictures, and why


def write_comparisons(folder: Path, asked: AskedComparisons) -> None:
    """For :func:`read_comparisons`."""
    write_json(folder / COMPARISONS, asked.model_dump(mode="json"))


def read_comparisons(folder: Path) -> AskedComparisons:
    """What the worker of a row is asked to compare."""
    return AskedComparisons.from_plain(json.loads(read_file(folder / COMPARISONS, COMPARISONS, MIB, follow=False)))
