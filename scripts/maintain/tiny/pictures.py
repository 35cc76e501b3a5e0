"""Procedural pictures of scenes: one flat, antialiased shape on a flat background. NumPy and Pillow only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from diffopt.pipeline.quality.scenes import BACKGROUNDS, COLOURS, PIXELS, POSITIONS, SIZES, Scene, outline

Array = NDArray[np.float32]

POSITION_JITTER = 1.25  # pixels, each way
COLOUR_JITTER = 4.0  # standard deviation of each channel, of 255
SUPERSAMPLING = 8


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
