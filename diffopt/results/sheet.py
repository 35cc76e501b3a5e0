"""A contact sheet: the pictures of a study side by side, so that one sees what each optimization does to them."""

from __future__ import annotations

import struct
import textwrap
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO

from PIL import Image, ImageDraw, ImageFont

from diffopt.errors import UsageError
from diffopt.recipe.labels import cell_label_line, cell_labels
from diffopt.results.frames import lossless_pictures
from diffopt.results.result import Result
from diffopt.results.study import Study
from diffopt.schema.words import one_line

FORMATS = ("PNG", "GIF")  # what a row keeps; Pillow has others for which it starts programs
SIDE = 256  # pixels of each picture on the sheet; smaller ones are enlarged without smoothing, to show their pixels
GAP = 12
CAPTION_LINES = 3
LINE = 18
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def contact_sheet(
    study: Study,
    results: Sequence[Result],
    *,
    columns: int = 4,
    on_unreadable: Callable[[UsageError], None] | None = None,
) -> Image.Image:
    """One tile per row: the first picture of the batch, or why there is none, above what tells the cell apart.

    A video is shown by its middle frame.

    Args:
        on_unreadable: told of each picture that is none, or lies elsewhere than in its row's folder.

    Raises:
        UsageError: for such a picture, when there is nobody to tell.
    """
    names = cell_labels([result.point for result in results])
    across = min(columns, len(results))
    down = -(-len(results) // across)
    tile = (SIDE + GAP, SIDE + GAP + CAPTION_LINES * LINE)
    sheet = Image.new("RGB", (across * tile[0] + GAP, down * tile[1] + GAP), "white")
    font = ImageFont.load_default(size=14)
    draw = ImageDraw.Draw(sheet)
    for index, (result, name) in enumerate(zip(results, names, strict=True)):
        left, top = GAP + index % across * tile[0], GAP + index // across * tile[1]
        picture = _picture(study, result, on_unreadable)
        if picture is None:
            draw.rectangle((left, top, left + SIDE, top + SIDE), outline="gray")
            ended = wrapped_caption(f"{result.status} at {result.phase}")
            draw.multiline_text((left + 8, top + 8), ended, "gray", font)
        else:
            sheet.paste(picture, (left, top))
        caption = wrapped_caption(cell_label_line(name) or result.cell_id)
        draw.multiline_text((left, top + SIDE + 4), caption, "black", font)
    return sheet


def _picture(study: Study, result: Result, on_unreadable: Callable[[UsageError], None] | None) -> Image.Image | None:
    if not result.artifacts.pictures:
        return None
    name = result.artifacts.pictures[0]
    where = f"{name} of cell {result.cell_id}"
    return read_tile(lambda: study.open_file(result, *_drawn(study, result, name)), where, on_unreadable)


def read_tile(
    opened: Callable[[], AbstractContextManager[BinaryIO]],
    where: str,
    on_unreadable: Callable[[UsageError], None] | None,
) -> Image.Image | None:
    """A picture as it stands on a sheet; None where it cannot be read, which is told, or raised as UsageError."""
    try:
        with opened() as file, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _tile(file)
    except UsageError as error:
        unreadable = error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, *_BOMBS) as error:  # what Pillow meets in a file
        unreadable = UsageError(f"{where} cannot be read as a picture: {one_line(error)}.")
    if on_unreadable is None:
        raise unreadable
    on_unreadable(unreadable)
    return None


def _drawn(study: Study, result: Result, name: str) -> tuple[str, ...]:
    """What is shown of a picture of that name: itself, or the middle frame of a video where frames were kept."""
    folder = study.place_of_file(result, name).parent
    drawn = lossless_pictures(folder, name)
    return drawn[len(drawn) // 2].relative_to(folder).parts if drawn else (name,)


def _tile(file: BinaryIO) -> Image.Image:
    with Image.open(file, formats=FORMATS) as opened:
        opened.seek(getattr(opened, "n_frames", 1) // 2)  # of a GIF from before frames were kept
        scale = SIDE / max(opened.size)
        size = (max(1, round(opened.width * scale)), max(1, round(opened.height * scale)))
        smooth = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        return opened.convert("RGB").resize(size, smooth)


def wrapped_caption(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 34)[:CAPTION_LINES])
