"""The figures of a cell's pictures: their distance to the reference's, beside the distances that are noise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffopt.errors import DiffoptError
from diffopt.machine.files import FOLDER_FOR_ITS_USER
from diffopt.pipeline.quality.accuracy import accuracy_of_drawing
from diffopt.pipeline.quality.distances import distance_of_drawings, name_of_map, pictures_that_are_not_finite
from diffopt.pipeline.quality.drawing import draw_for_comparison
from diffopt.recipe.cell import Cell
from diffopt.results.drawing import Against, AskedComparisons
from diffopt.results.quality import Distance, Floor, QualityFigures, shipped_thresholds, with_verdict

if TYPE_CHECKING:
    from diffopt.pipeline.meter import Meter


def draw_as_reference(meter: Meter, cell: Cell, folder: Path) -> tuple[str, ...]:
    """Draw pictures that others are compared with into a new folder; the files' names.

    Raises DiffoptError for pictures that nothing can be compared with.
    """
    names = _drawn_into(meter, cell, folder)
    if odd := pictures_that_are_not_finite(folder, len(names)):
        raise DiffoptError(f"the latents are not finite in picture {_indices_in_words(odd)}")
    if complaints := meter.complaints():  # of the last batch
        raise DiffoptError("; ".join(complaints))
    return names


def draw_and_judge(meter: Meter, cell: Cell, folder: Path, asked: AskedComparisons) -> QualityFigures:
    """Draw a cell's pictures into a new folder and compare them."""
    begin = time.perf_counter()
    found = _judged(cell, folder, _drawn_into(meter, cell, folder), asked)
    return found.model_copy(update={"seconds": round(time.perf_counter() - begin, 3)})


def _drawn_into(meter: Meter, cell: Cell, folder: Path) -> tuple[str, ...]:
    folder.mkdir(FOLDER_FOR_ITS_USER)
    return draw_for_comparison(meter, cell, folder)


def _judged(cell: Cell, folder: Path, names: Sequence[str], asked: AskedComparisons) -> QualityFigures:
    reference, limits = asked.reference, shipped_thresholds()
    found = QualityFigures(
        reference=None if reference is None else reference.drawing.id,
        pictures=tuple(names),
        accuracy=accuracy_of_drawing(cell, folder, names),
        reason=asked.reason,
        settled=asked.settled,
    )
    if odd := pictures_that_are_not_finite(folder, len(names)):
        said = f"the latents are not finite in picture {_indices_in_words(odd)}"
        return found.model_copy(
            update={"reason": said, "verdict": "broken", "because": said, "thresholds": limits.version}
        )
    if reference is None:
        return found
    floors = (*(_floor(name, each, reference) for name, each in asked.floors.items()), *asked.without)
    figures = {
        "is_reference": asked.own == reference.drawing.id,
        "is_own_floor": asked.own in [each.drawing.id for each in asked.floors.values()],
        "distance": _distance(folder, names, reference, maps=True),
        "maps": tuple(map(name_of_map, range(len(names)))),
        "floors": floors,
        "accuracy_of_reference": accuracy_of_drawing(cell, Path(reference.folder), reference.drawing.pictures),
    }
    return with_verdict(found.model_copy(update=figures), limits)


def _floor(changed: str, other: Against, reference: Against) -> Floor:
    return Floor(changed=changed, distance=_distance(Path(other.folder), other.drawing.pictures, reference))


def _distance(folder: Path, names: Sequence[str], reference: Against, *, maps: bool = False) -> Distance:
    return distance_of_drawings(folder, names, Path(reference.folder), reference.drawing.pictures, maps=maps)


def _indices_in_words(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices))
