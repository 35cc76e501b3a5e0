"""A contact sheet: the pictures of a study side by side, so that one sees what each optimization does to them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from diffopt.recipe.labels import cell_label_line, cell_labels
from diffopt.results.frames import lossless_pictures
from diffopt.results.result import Result
from diffopt.results.study import Study

SIDE = 256  # pixels of each picture on the sheet; smaller ones are enlarged without smoothing, to show their pixels
GAP = 12
CAPTION_LINES = 3
LINE = 18


def contact_sheet(study: Study, results: Sequence[Result], *, columns: int = 4) -> Image.Image:
    """One tile per row: the first picture of the batch, or why there is none, above what tells the cell apart.

    A video is shown by its middle frame.
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
        picture = _picture(study, result)
        if picture is None:
            draw.rectangle((left, top, left + SIDE, top + SIDE), outline="gray")
            draw.multiline_text((left + 8, top + 8), _wrapped(f"{result.status} at {result.phase}"), "gray", font)
        else:
            sheet.paste(picture, (left, top))
        draw.multiline_text((left, top + SIDE + 4), _wrapped(cell_label_line(name) or result.cell_id), "black", font)
    return sheet


def _picture(study: Study, result: Result) -> Image.Image | None:
    if not result.artifacts.pictures:
        return None
    folder, shown = study.folder(result.cell_id, result.env_id), result.artifacts.pictures[0]
    drawn = lossless_pictures(folder, shown)
    with Image.open(drawn[len(drawn) // 2] if drawn else folder / shown) as opened:
        opened.seek(getattr(opened, "n_frames", 1) // 2)  # of a GIF from before frames were kept
        scale = SIDE / max(opened.size)
        size = (max(1, round(opened.width * scale)), max(1, round(opened.height * scale)))
        smooth = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        return opened.convert("RGB").resize(size, smooth)


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 34)[:CAPTION_LINES])
