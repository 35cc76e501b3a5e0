"""The pictures of a row: saved with what made them, and looked at for the plainest of defects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image


def is_constant(picture: Image) -> bool:
    """Whether all pixels are equal: the picture of NaN is black."""
    return all(low == high for low, high in _extrema(picture))


def _extrema(picture: Image) -> list[tuple[float, float]]:
    extrema: Any = picture.getextrema()
    return list(extrema) if isinstance(extrema[0], tuple) else [extrema]


def save_pictures(pictures: list[Image], folder: Path, cell_id: str, seed: int) -> tuple[str, ...]:
    """Save as ``0.png``, ``1.png``, … with the cell's id and the seed in the metadata; returns the names."""
    from PIL.PngImagePlugin import PngInfo

    names = []
    for index, picture in enumerate(pictures):
        about = PngInfo()
        about.add_text("diffopt:cell_id", cell_id)
        about.add_text("diffopt:seed", str(seed + index))
        names.append(f"{index}.png")
        picture.save(folder / names[-1], pnginfo=about)
    return tuple(names)
