"""Draws the pictures in ``diffopt/models/inputs``: ``python -m scripts.maintain.draw_inputs FOLDER``. For maintainers.

One map of regions is painted, back to front, and all three pictures are made from it: the scene is the regions in
colour, the mask those of the house, the edges what lies between two regions. Nothing is random.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 512  # pixels; all positions below are in them
FINE = 4  # the scene is painted this much larger and averaged, which smooths its outlines
LEVEL = 6  # colours are multiples of this, which looks like paint and keeps the file small
MARGIN = 6  # pixels that the mask reaches beyond the house

# Colour of each region at its top and at its bottom, and how strong its brush strokes are.
REGIONS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], float]] = {
    "sky": ((96, 150, 208), (250, 226, 188), 2.0),
    "sun": ((255, 240, 168), (255, 214, 110), 0.0),
    "cloud": ((255, 250, 244), (228, 226, 232), 2.0),
    "mountain": ((128, 138, 178), (172, 176, 196), 4.0),
    "far hill": ((150, 176, 122), (118, 156, 98), 5.0),
    "hill": ((116, 160, 76), (84, 132, 62), 6.0),
    "meadow": ((146, 176, 78), (88, 132, 54), 8.0),
    "path": ((226, 204, 160), (204, 174, 124), 5.0),
    "trunk": ((98, 70, 48), (80, 56, 40), 3.0),
    "tree": ((62, 112, 70), (34, 76, 50), 7.0),
    "front": ((250, 236, 208), (236, 214, 178), 3.0),
    "side": ((222, 200, 168), (202, 176, 142), 3.0),
    "roof": ((196, 92, 66), (154, 62, 48), 6.0),
    "chimney": ((150, 86, 70), (128, 70, 58), 3.0),
    "door": ((112, 74, 48), (90, 58, 40), 4.0),
    "window": ((150, 190, 214), (96, 140, 176), 0.0),
}
NAMES = list(REGIONS)
HOUSE = ("front", "side", "roof", "chimney", "door", "window")

Points = Sequence[tuple[float, float]]
Array = np.ndarray[Any, Any]


def draw() -> dict[str, Image.Image]:
    """``scene`` (RGB), ``mask`` and ``edges`` (both L, black and white), each 512 x 512."""
    regions = _regions()
    coarse = regions[FINE // 2 :: FINE, FINE // 2 :: FINE]
    return {"scene": _scene(regions), "mask": _mask(coarse), "edges": _edges(coarse)}


def _regions() -> Array:
    """The number of the region that each pixel of the enlarged picture shows."""
    canvas = Image.new("L", (SIDE * FINE, SIDE * FINE), NAMES.index("sky"))
    brush = ImageDraw.Draw(canvas)

    def polygon(name: str, points: Points) -> None:
        brush.polygon([(x * FINE, y * FINE) for x, y in points], fill=NAMES.index(name))

    def disc(name: str, x: float, y: float, radius: float) -> None:
        box = [(x - radius) * FINE, (y - radius) * FINE, (x + radius) * FINE, (y + radius) * FINE]
        brush.ellipse(box, fill=NAMES.index(name))

    disc("sun", 112, 104, 40)
    for x, y in ((300, 84), (420, 142)):
        for dx, dy, radius in ((-36, 8, 18), (-12, -4, 24), (18, 0, 22), (42, 9, 15)):
            disc("cloud", x + dx, y + dy, radius)
    peaks = [(0, 246), (70, 176), (126, 220), (206, 150), (282, 224), (352, 172), (512, 250)]
    polygon("mountain", [*peaks, (SIDE, 330), (0, 330)])
    polygon("far hill", _ridge(252, 18, 310, 0.6))
    polygon("hill", _ridge(300, 24, 420, 2.6))
    polygon("meadow", _ridge(372, 12, 560, 4.4))
    polygon("path", _path())
    for x, y, height in ((104, 402, 128), (36, 424, 160), (166, 390, 92), (484, 404, 120)):
        _pine(polygon, x, y, height)
    _house(polygon)
    return np.asarray(canvas)


def _ridge(y: float, height: float, length: float, phase: float) -> list[tuple[float, float]]:
    """The outline of a hill: a wave of ``height`` around ``y``, down to the lower border."""
    xs = np.linspace(0, SIDE, 129)
    ys = y + height * np.sin(2 * np.pi * xs / length + phase)
    return [*zip(xs.tolist(), ys.tolist(), strict=True), (SIDE, SIDE), (0, SIDE)]


def _path() -> list[tuple[float, float]]:
    """Both sides of the way from the door to the lower border; it bends, and widens towards the eye."""
    down = np.linspace(0, 1, 33)
    middle, half = 292 - 86 * down**1.2 + 22 * np.sin(np.pi * 1.6 * down), 13 + 42 * down**2
    ys = 398 + (SIDE - 398) * down
    left, right = zip(middle - half, ys, strict=True), zip(middle + half, ys, strict=True)
    return [(float(x), float(y)) for x, y in (*left, *reversed(list(right)))]


def _pine(polygon: Callable[[str, Points], None], x: float, foot: float, height: float) -> None:
    width, top = height * 0.44, foot - height
    polygon("trunk", [(x - 5, foot - 24), (x + 5, foot - 24), (x + 6, foot), (x - 6, foot)])
    for part, (begin, end) in enumerate(((0.0, 0.42), (0.22, 0.66), (0.46, 0.9))):
        half = width * (0.5 + 0.25 * part) / 2 * 1.3
        polygon("tree", [(x, top + begin * height), (x + half, top + end * height), (x - half, top + end * height)])


def _house(polygon: Callable[[str, Points], None]) -> None:
    polygon("chimney", [(384, 196), (408, 194), (408, 250), (384, 250)])
    polygon("side", [(338, 302), (454, 290), (454, 376), (338, 402)])
    polygon("front", [(246, 300), (294, 226), (340, 302), (340, 402), (246, 402)])
    polygon("roof", [(290, 214), (416, 206), (472, 294), (340, 312)])
    polygon("roof", [(290, 214), (298, 226), (248, 308), (232, 306)])
    polygon("door", [(276, 402), (276, 340), (308, 340), (308, 402)])
    polygon("window", [(280, 276), (306, 276), (306, 306), (280, 306)])
    for left, right in ((362, 386), (410, 434)):
        slope = [322 - 0.11 * (x - 362) for x in (left, right)]
        polygon("window", [(left, slope[0]), (right, slope[1]), (right, slope[1] + 30), (left, slope[0] + 32)])


def _scene(regions: Array) -> Image.Image:
    """The regions in colour, with brush strokes, and the sun's glow in the sky."""
    size = SIDE * FINE
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / FINE
    strokes = np.sin(x * 0.21 + 4 * np.sin(y * 0.043)) + np.sin(y * 0.33 + 3 * np.sin(x * 0.031))
    glow = np.exp(-((x - 112) ** 2 + (y - 104) ** 2) / 9000)[..., None] * (regions == NAMES.index("sky"))[..., None]
    picture = np.zeros((size, size, 3), np.float32)
    for number, (top, bottom, strength) in enumerate(REGIONS.values()):
        here = regions == number
        rows = np.flatnonzero(here.any(axis=1)) / FINE
        down = ((y[here] - rows[0]) / max(1, rows[-1] - rows[0]))[:, None]
        shade = np.array(top) * (1 - down) + np.array(bottom) * down
        picture[here] = shade + strength * np.rint(strokes[here])[:, None]
    picture += glow * (np.array((255, 236, 170)) - picture) * 0.8
    averaged = picture.reshape(SIDE, FINE, SIDE, FINE, 3).mean(axis=(1, 3))
    levels = np.rint(averaged / LEVEL) * LEVEL
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def _mask(regions: Array) -> Image.Image:
    """White on the house and a little around it."""
    house = np.isin(regions, [NAMES.index(name) for name in HOUSE])
    return Image.fromarray(house.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * MARGIN + 1))


def _edges(regions: Array) -> Image.Image:
    """White lines where a pixel's right or lower neighbour belongs to another region."""
    lines = np.zeros(regions.shape, bool)
    lines[:, :-1] |= regions[:, :-1] != regions[:, 1:]
    lines[:-1] |= regions[:-1] != regions[1:]
    return Image.fromarray(lines.astype(np.uint8) * 255)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in draw().items():
        picture.save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
