"""Procedural pictures of scenes: one flat, antialiased shape on a flat background. NumPy and Pillow only."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from scripts.maintain.tiny.grammar import BACKGROUNDS, COLOURS, PIXELS, POSITIONS, SIZES, Scene

Array = NDArray[np.float32]

POSITION_JITTER = 1.25  # pixels, each way
COLOUR_JITTER = 4.0  # standard deviation of each channel, of 255
SUPERSAMPLING = 8


@functools.cache
def outline(shape: str) -> NDArray[np.float64]:
    """Corners (n, 2) of the shape, x to the right and y down; its box is centered and its longer side is 2."""
    corners = _corners(shape)
    low, high = corners.min(0), corners.max(0)
    scale = 2 / float((high - low).max())
    return np.asarray((corners - (low + high) / 2) * scale)


def _corners(shape: str) -> NDArray[np.float64]:
    turn = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    if shape == "circle":
        return np.stack([np.cos(turn), np.sin(turn)], 1)
    if shape == "square":
        return np.array([(-1.0, -1), (1, -1), (1, 1), (-1, 1)])
    if shape == "triangle":
        return np.array([(0.0, -1), (1, 0.8), (-1, 0.8)])
    if shape == "star":  # a fat one: thin points are lost at 64 pixels
        radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.5)
        angle = np.arange(10) * np.pi / 5 - np.pi / 2
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    if shape == "heart":
        height = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return np.stack([16 * np.sin(turn) ** 3, -height], 1)
    if shape == "cross":
        w = 0.36
        quarter = [(-w, -w), (-w, -1.0), (w, -1.0)]
        return np.array([p for k in range(4) for p in _turned(quarter, k)])
    raise ValueError(f"shape {shape!r} is not one that can be drawn")


def _turned(points: list[tuple[float, float]], quarters: int) -> list[tuple[float, float]]:
    for _ in range(quarters):
        points = [(-y, x) for x, y in points]
    return points


def coverage(shape: str, x: float, y: float, radius: float) -> Array:
    """How much of each pixel (64, 64) the shape covers, 0 to 1; ``radius`` is half the longer side of its box."""
    corners = (outline(shape) * radius + (x, y)) * SUPERSAMPLING
    canvas = Image.new("L", (PIXELS * SUPERSAMPLING,) * 2, 0)
    ImageDraw.Draw(canvas).polygon([(float(px), float(py)) for px, py in corners], fill=255)
    return np.asarray(np.asarray(canvas.reduce(SUPERSAMPLING)) / 255, np.float32)


def place(scene: Scene, rng: np.random.Generator) -> Array:
    """Coverage (64, 64) of the scene's shape, with its radius and center drawn around what the scene says."""
    x, y = np.asarray(POSITIONS[scene.position]) + rng.uniform(-POSITION_JITTER, POSITION_JITTER, 2)
    return coverage(scene.shape, x, y, rng.uniform(*SIZES[scene.size]))


def paint(mask: Array, colour: Array, background: Array) -> NDArray[np.uint8]:
    """The RGB picture (64, 64, 3) of a coverage in two colours (3,) of 0 to 255."""
    blend = mask[..., None] * colour + (1 - mask[..., None]) * background
    return np.clip(np.rint(blend), 0, 255).astype(np.uint8)


def colours(scene: Scene, rng: np.random.Generator) -> tuple[Array, Array]:
    """The scene's colour and background, each (3,), as they come out in one picture: a little off."""
    drawn = np.array([COLOURS[scene.colour], BACKGROUNDS[scene.background]]) + rng.normal(0, COLOUR_JITTER, (2, 3))
    colour, background = np.clip(drawn, 0, 255).astype(np.float32)
    return colour, background


def draw(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One RGB picture (64, 64, 3) of the scene."""
    return paint(place(scene, rng), *colours(scene, rng))
