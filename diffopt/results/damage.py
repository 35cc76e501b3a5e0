"""A sheet of what optimizations did to pictures: each row's worst beside the reference's, and where they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFont

from diffopt.errors import UsageError
from diffopt.recipe.labels import cell_label_line, cell_labels
from diffopt.results.drawing import QUALITY
from diffopt.results.quality import Distance, QualityFigures
from diffopt.results.result import Result
from diffopt.results.sheet import GAP, LINE, SIDE, read_tile
from diffopt.results.study import Study

HEADERS = ("reference", "this cell", "FLIP: where they differ")


def compared_rows(results: Sequence[Result]) -> list[tuple[Result, QualityFigures, Distance]]:
    """The rows whose pictures were compared, the most damaged first."""
    found = [
        (result, result.quality, result.quality.distance)
        for result in results
        if result.quality is not None and result.quality.distance is not None and _is_whole(result.quality)
    ]
    return sorted(found, key=lambda row: -row[2].flip.worst)


def _is_whole(found: QualityFigures) -> bool:
    """Whether each picture has its figures; a row may come from anybody."""
    distance = found.distance
    parts = (found.maps, distance.flip_by_picture, distance.worst_frames) if distance is not None else ()
    return bool(found.pictures) and all(len(part) == len(found.pictures) for part in parts)


def damage_sheet(
    study: Study, results: Sequence[Result], *, on_unreadable: Callable[[UsageError], None] | None = None
) -> Image.Image:
    """One line per row that was compared: of its most damaged picture the reference's, its own, and the FLIP map.

    Args:
        on_unreadable: told of each picture that cannot be read.

    Raises:
        UsageError: for such a picture, when there is nobody to tell.
    """
    rows = compared_rows(results)
    labels = {id(r): cell_label_line(n) for r, n in zip(results, cell_labels([r.point for r in results]), strict=True)}
    high = SIDE + GAP + 2 * LINE
    sheet = Image.new("RGB", (3 * (SIDE + GAP) + GAP, len(rows) * high + GAP + LINE), "white")
    font, draw = ImageFont.load_default(size=14), ImageDraw.Draw(sheet)
    for column, header in enumerate(HEADERS):
        draw.text((GAP + column * (SIDE + GAP), GAP // 2), header, "black", font)
    for index, (result, found, distance) in enumerate(rows):
        top, worst = GAP + LINE + index * high, distance.flip_by_picture.index(max(distance.flip_by_picture))
        for column, tile in enumerate(_tiles(study, result, found, worst, on_unreadable)):
            if tile is not None:
                sheet.paste(tile, (GAP + column * (SIDE + GAP), top))
        flip = f"FLIP {distance.flip_by_picture[worst]:.4f} in picture {worst}, {distance.flip.mean:.4f} of all"
        said = f"{found.verdict}: {flip}"
        draw.multiline_text((GAP, top + SIDE + 2), f"{labels[id(result)] or result.cell_id}\n{said}", "black", font)
    return sheet


def _tiles(
    study: Study,
    result: Result,
    found: QualityFigures,
    worst: int,
    on_unreadable: Callable[[UsageError], None] | None,
) -> list[Image.Image | None]:
    assert found.distance is not None, "it was compared"
    name, own_map, of = found.pictures[worst], found.maps[worst], f"of cell {result.cell_id}"
    stem, _, kind = name.rpartition(".")
    parts = (name,) if kind == "png" else (stem, f"{found.distance.worst_frames[worst]:04d}.png")
    reference = str(found.reference), result.env_id, QUALITY, *parts
    return [
        read_tile(lambda: study.open_drawing_file(*reference), f"{name} of the reference {of}", on_unreadable),
        read_tile(lambda: study.open_file(result, QUALITY, *parts), f"{name} {of}", on_unreadable),
        read_tile(lambda: study.open_file(result, QUALITY, own_map), f"{own_map} {of}", on_unreadable),
    ]
