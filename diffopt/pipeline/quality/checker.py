"""Is this the picture that the prompt asks for? Measured with NumPy alone; nothing here is learned.

The background is the median of the border, the shape is what lies along the line from the background's colour to its
own. Area and centroid bring it to a standard frame, where it is compared with each ideal shape. A shape counts only
with an intersection over union of 0.85: a wobbly square or a blunt star is wrong.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffopt.pipeline.quality.scenes import BACKGROUNDS, COLOURS, PIXELS, POSITIONS, SHAPES, Scene, outline, parse

STRICT_IOU = 0.85
COLOUR_TOLERANCE = 60.0  # distance in RGB of 255 beyond which a colour has no name
CONTRAST = 50.0  # a shape differs from its background by at least this
POSITION_TOLERANCE = 5.0  # pixels; half the way from the center to a corner
SMALL_BELOW, LARGE_ABOVE = 13.5, 18.0  # pixels, half the longer side
GRID = 64  # cells of the standard frame, which spans [-1.2, 1.2] of the ideal shape both ways
REACH = 1.2

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SceneVerdict:
    """Which parts of the picture are as asked."""

    colour: bool
    background: bool
    position: bool
    size: bool
    shape: bool

    @property
    def all(self) -> bool:
        return self.colour and self.background and self.position and self.size and self.shape


@dataclass(frozen=True)
class Reading:
    """What a picture shows; None where it shows nothing that has a name."""

    colour: str | None
    background: str | None
    position: str | None
    size: str | None
    shape: str | None  # the best match, and only when it is strict
    iou: float  # of the best match, 0 when there is none


def check(picture: ArrayLike, asked: Scene | str) -> SceneVerdict:
    """Compare an RGB picture (64, 64, 3), 0 to 255, with a scene or a prompt of the grammar.

    Raises ValueError for a picture of another form and for a prompt outside the grammar.
    """
    scene = parse(asked) if isinstance(asked, str) else asked
    seen = read(picture)
    parts = ("colour", "background", "position", "size", "shape")
    return SceneVerdict(**{part: getattr(seen, part) == getattr(scene, part) for part in parts})


def read(picture: ArrayLike) -> Reading:
    """Name what an RGB picture (64, 64, 3), 0 to 255, shows."""
    pixels = np.asarray(picture, np.float64)
    if pixels.shape != (PIXELS, PIXELS, 3):
        raise ValueError(f"a picture has the form ({PIXELS}, {PIXELS}, 3), this one {pixels.shape}")
    background = _border_colour(pixels)
    background_name = _name(background, BACKGROUNDS)
    distance = np.linalg.norm(pixels - background, axis=2)
    core = distance > max(CONTRAST, 0.6 * float(np.percentile(distance, 99)))
    if core.sum() < 12:
        return Reading(None, background_name, None, None, None, 0.0)
    colour = np.median(pixels[core], axis=0)
    mask, stray = _coverage(pixels, background, colour)
    matches = {shape: _match(mask, stray, shape) for shape in SHAPES}
    best = max(matches, key=lambda shape: matches[shape][0])
    iou, x, y, radius = matches[best]
    size = "small" if radius < SMALL_BELOW else "large" if radius > LARGE_ABOVE else "medium"
    strict = best if iou >= STRICT_IOU else None
    return Reading(_name(colour, COLOURS), background_name, _position(x, y), size, strict, iou)


def _border_colour(pixels: Array) -> Array:
    edges = (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])
    return np.asarray(np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0))


def _name(colour: Array, expected: dict[str, tuple[int, int, int]]) -> str | None:
    """The nearest of all twelve colours, where it is near enough and of the expected kind."""
    distances = {name: float(np.linalg.norm(colour - np.asarray(rgb))) for name, rgb in (COLOURS | BACKGROUNDS).items()}
    nearest = min(distances, key=lambda name: distances[name])
    return nearest if nearest in expected and distances[nearest] <= COLOUR_TOLERANCE else None


def _position(x: float, y: float) -> str | None:
    distances = {name: float(np.hypot(x - px, y - py)) for name, (px, py) in POSITIONS.items()}
    nearest = min(distances, key=lambda name: distances[name])
    return nearest if distances[nearest] <= POSITION_TOLERANCE else None


def _coverage(pixels: Array, background: Array, colour: Array) -> tuple[Array, float]:
    """How far each pixel is on the way from background to colour (64, 64), and how many are on no such way."""
    axis = colour - background
    way = np.clip((pixels - background) @ axis / (axis @ axis), 0, 1)
    off = np.linalg.norm(pixels - background - way[..., None] * axis, axis=2) > COLOUR_TOLERANCE
    return np.where(off, 0, way), float(off.sum())


def _match(mask: Array, stray: float, shape: str) -> tuple[float, float, float, float]:
    """Intersection over union with the ideal shape, then x, y and radius of the shape's box, all in pixels."""
    ideal, area, offset = _ideal(shape)
    solid = np.where(mask > 0.2, mask, 0)  # faint haze over the whole picture would move the moments
    total = float(solid.sum())
    if total == 0:
        return 0.0, 0.0, 0.0, 0.0
    radius = float(np.sqrt(total / area))
    middle = np.arange(PIXELS) + 0.5
    x = float(solid.sum(0) @ middle / total) - offset[0] * radius
    y = float(solid.sum(1) @ middle / total) - offset[1] * radius
    seen = _sampled_at(mask, x + radius * _frame(), y + radius * _frame()) > 0.5
    cell = (2 * REACH * radius / GRID) ** 2  # pixels per cell
    outside = max(0.0, float((mask > 0.5).sum()) - seen.sum() * cell) + stray
    union = float((seen | ideal).sum()) * cell + outside
    return float((seen & ideal).sum()) * cell / union, x, y, radius


@functools.cache
def _frame() -> Array:
    return (np.arange(GRID) + 0.5) / GRID * 2 * REACH - REACH


@functools.cache
def _ideal(shape: str) -> tuple[NDArray[np.bool_], float, tuple[float, float]]:
    """The shape in the standard frame (GRID, GRID), its area and its centroid, for a box of half side 1."""
    corners = outline(shape)
    (x, y), (x2, y2) = corners.T, np.roll(corners, -1, 0).T
    slices = x * y2 - x2 * y  # twice the signed area between each edge and the origin
    area = float(slices.sum()) / 2
    centroid = (float(((x + x2) * slices).sum() / (6 * area)), float(((y + y2) * slices).sum() / (6 * area)))
    px, py = _frame()[None, :], _frame()[:, None]
    inside = np.zeros((GRID, GRID), bool)
    for ax, ay, bx, by in zip(x, y, x2, y2, strict=True):  # even-odd rule: how many edges lie to the right
        if ay != by:
            inside ^= ((ay > py) != (by > py)) & (px < (bx - ax) * (py - ay) / (by - ay) + ax)
    return inside, abs(float(area)), centroid


def _sampled_at(mask: Array, xs: Array, ys: Array) -> Array:
    """``mask`` at the points ys × xs, in pixels, between pixel centers by bilinear interpolation; 0 beyond it."""
    padded = np.pad(mask, 1)
    (column, right), (row, down) = _cells(xs), _cells(ys)
    top = padded[row[:, None], column] * (1 - right) + padded[row[:, None], column + 1] * right
    bottom = padded[row[:, None] + 1, column] * (1 - right) + padded[row[:, None] + 1, column + 1] * right
    return np.asarray(top * (1 - down[:, None]) + bottom * down[:, None])


def _cells(points: Array) -> tuple[NDArray[np.intp], Array]:
    """The padded pixel before each point, and how far the point is on the way to the next."""
    position = np.clip(points + 0.5, 0, PIXELS + 0.999)
    whole = np.floor(position).astype(np.intp)
    return whole, position - whole
