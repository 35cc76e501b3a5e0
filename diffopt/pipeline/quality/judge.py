"""The figures of a cell's pictures: their distance to the reference's, beside the distances that are noise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffopt.machine.files import FOLDER_FOR_ITS_USER
from diffopt.pipeline.quality.accuracy import accuracy_of_drawing
from diffopt.pipeline.quality.distances import (
    distance_of_drawings,
    pictures_that_are_not_finite,
    save_flip_maps,
)
from diffopt.pipeline.quality.drawing import draw_for_comparison
from diffopt.recipe.cell import Cell
from diffopt.results.drawing import Against, AskedComparisons
from diffopt.results.quality import Distance, Floor, QualityFigures, shipped_thresholds, with_verdict

if TYPE_CHECKING:
    from diffopt.pipeline.meter import Meter


def draw_and_judge(
    meter: Meter, cell: Cell, folder: Path, asked: AskedComparisons | None
) -> tuple[tuple[str, ...], QualityFigures | None]:
    """Draw a cell's pictures into a new folder and compare them; the files' names, and the figures where asked."""
    begin = time.perf_counter()
    folder.mkdir(FOLDER_FOR_ITS_USER)
    names = draw_for_comparison(meter, cell, folder)
    if asked is None:
        return names, None
    found = judge_pictures(cell, folder, names, asked)
    return names, found.model_copy(update={"seconds": round(time.perf_counter() - begin, 3)})


def judge_pictures(cell: Cell, folder: Path, names: Sequence[str], asked: AskedComparisons) -> QualityFigures:
    """Compare the pictures in a folder with those that are asked for."""
    reference = asked.reference
    accuracy = accuracy_of_drawing(cell, folder, names)
    if reference is None:
        return QualityFigures(reference=None, reason=asked.reason, pictures=tuple(names), accuracy=accuracy)
    if odd := pictures_that_are_not_finite(folder, len(names)):
        said = f"the latents are not finite in picture {', '.join(map(str, odd))}"
        return QualityFigures(
            reference=reference.drawing.id,
            pictures=tuple(names),
            accuracy=accuracy,
            reason=said,
            verdict="broken",
            because=said,
        )
    found = QualityFigures(
        reference=reference.drawing.id,
        is_reference=asked.is_reference,
        pictures=tuple(names),
        distance=_distance(folder, names, reference),
        floors=(*(_floor(name, each, reference) for name, each in asked.floors.items()), *asked.without),
        accuracy=accuracy,
        accuracy_of_reference=accuracy_of_drawing(cell, Path(reference.folder), reference.drawing.pictures),
    )
    names_of_maps = save_flip_maps(folder, names, Path(reference.folder), reference.drawing.pictures)
    return with_verdict(found.model_copy(update={"maps": names_of_maps}), shipped_thresholds())


def _floor(changed: str, other: Against, reference: Against) -> Floor:
    return Floor(changed=changed, distance=_distance(Path(other.folder), other.drawing.pictures, reference))


def _distance(folder: Path, names: Sequence[str], reference: Against) -> Distance:
    return distance_of_drawings(folder, names, Path(reference.folder), reference.drawing.pictures)
