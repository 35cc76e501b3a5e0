"""Whether pictures show what their prompts ask for, of the one model of which that can be told: the built-in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffopt.pipeline.quality.checker import check
from diffopt.pipeline.quality.scenes import PIXELS, parse
from diffopt.recipe.cell import Cell

CHECKED = "tiny"  # the architecture


def accuracy_of_drawing(cell: Cell, folder: Path, names: Sequence[str]) -> float | None:
    """The share of a cell's pictures that show all that is asked for.

    None for any other model, another size, and where a prompt is not in the model's grammar.
    """
    model, workload = cell.recipe.model, cell.workload
    sized = (workload.height, workload.width) == (PIXELS, PIXELS)
    if model.architecture != CHECKED or model.weights != "pretrained" or workload.task != "txt2img" or not sized:
        return None
    prompts = [prompt for prompt, _ in cell.quality.pictures]
    try:
        scenes = [parse(prompt) for prompt in prompts]
    except ValueError:
        return None
    right = [check(_pixels(folder / name), scene).all for name, scene in zip(names, scenes, strict=True)]
    return sum(right) / len(right)


def _pixels(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    with Image.open(path, formats=("PNG",)) as opened:
        return np.asarray(opened.convert("RGB"))
