"""What the built-in model understands: scenes, the prompts that name them, and which of them training never sees.

NumPy alone.

    a [small|large] COLOUR SHAPE [in the POSITION] on a COLOUR background

No size means medium and no position means the center, so every prompt fixes all five parts of the picture.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PIXELS = 64  # height and width of every picture

COLOURS = {
    "red": (220, 30, 35),
    "green": (35, 165, 60),
    "blue": (35, 75, 230),
    "yellow": (250, 215, 30),
    "orange": (250, 130, 20),
    "purple": (130, 40, 180),
    "pink": (250, 130, 190),
    "cyan": (40, 210, 225),
}
BACKGROUNDS = {"white": (248, 248, 248), "black": (12, 12, 12), "gray": (128, 128, 128), "brown": (105, 65, 30)}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
POSITIONS = {  # center of the shape's box, in pixels from the top left
    "center": (32.0, 32.0),
    "top left": (22.0, 22.0),
    "top right": (42.0, 22.0),
    "bottom left": (22.0, 42.0),
    "bottom right": (42.0, 42.0),
}
SIZES = {"small": (11.0, 12.0), "medium": (15.0, 16.5), "large": (19.5, 20.5)}  # half the longer side, in pixels

HELD_OUT_SEED = 3
TEST_SCENES, VALIDATION_SCENES = 100, 60


@dataclass(frozen=True)
class Scene:
    """What a prompt asks for; position "center" and size "medium" where it does not say."""

    shape: str
    colour: str
    background: str
    position: str = "center"
    size: str = "medium"

    @property
    def prompt(self) -> str:
        """The shortest sentence of the grammar for this scene."""
        what = f"{self.colour} {self.shape}" if self.size == "medium" else f"{self.size} {self.colour} {self.shape}"
        article = "an" if what.startswith("orange") else "a"
        where = "" if self.position == "center" else f" in the {self.position}"
        return f"{article} {what}{where} on a {self.background} background"


_PROMPT = re.compile(
    rf"an? (?:(?P<size>small|large) )?(?P<colour>{'|'.join(COLOURS)}) (?P<shape>{'|'.join(SHAPES)})"
    rf"(?: in the (?P<position>{'|'.join(POSITIONS)}))? on a (?P<background>{'|'.join(BACKGROUNDS)}) background"
)


def parse(prompt: str) -> Scene:
    """The scene that a sentence of the grammar names; ValueError for any other text."""
    match = _PROMPT.fullmatch(prompt.strip().lower())
    if match is None:
        raise ValueError(f"{prompt!r} is not: a [small|large] COLOUR SHAPE [in the POSITION] on a COLOUR background")
    return Scene(**{part: word for part, word in match.groupdict().items() if word is not None})


def all_scenes() -> list[Scene]:
    """Every scene of the grammar, in a fixed order (2,880)."""
    return [Scene(*parts) for parts in itertools.product(SHAPES, COLOURS, BACKGROUNDS, POSITIONS, SIZES)]


def centred_scenes() -> list[Scene]:
    """The 192 scenes of medium size in the center: every shape in every colour on every background."""
    return [Scene(*parts) for parts in itertools.product(SHAPES, COLOURS, BACKGROUNDS)]


def held_out() -> tuple[list[Scene], list[Scene]]:
    """Scenes that no training picture shows: 100 to report on, and 60 to choose settings on.

    Each has a corner, or a size other than medium, or both.
    """
    placed = [scene for scene in all_scenes() if (scene.position, scene.size) != ("center", "medium")]
    chosen = random.Random(HELD_OUT_SEED).sample(placed, TEST_SCENES + VALIDATION_SCENES)
    return chosen[:TEST_SCENES], chosen[TEST_SCENES:]


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
        return np.array([p for k in range(4) for p in _turned_points(quarter, k)])
    raise ValueError(f"shape {shape!r} is not one that can be drawn")


def _turned_points(points: list[tuple[float, float]], quarters: int) -> list[tuple[float, float]]:
    for _ in range(quarters):
        points = [(-y, x) for x, y in points]
    return points
