"""The pictures and videos of a row: saved with what made them, and looked at for the plainest of defects.

A video is a list of frames, or an array (frames, height, width, 3) of 0 to 1. It is saved as an animated GIF, which
every viewer shows and which needs no encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffopt.machine.files import file_that_appears_whole

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    Output = Image | list[Image] | np.ndarray[Any, Any]

UNKNOWN_FPS = 8  # frames per second, where the model does not say
LEAST_CENTISECONDS = 2  # per frame of a GIF; viewers show shorter ones slowly


def is_constant_picture(output: Output) -> bool:
    """Whether all pixels are equal, in each frame of a video: the picture of NaN is black."""
    return all(low == high for picture in _frames(output) for low, high in _extrema(picture))


def save_pictures(
    outputs: Sequence[Output], folder: Path, cell_id: str, seed: int, *, fps: int | None = None
) -> tuple[str, ...]:
    """Save pictures as ``0.png``, ``1.png``, … and videos as ``0.gif``, …; returns the names.

    The metadata has the cell's id and the seed, the first one's being ``seed``. A GIF counts in hundredths of a second,
    so a video keeps its length and its frames are shown for unequal times where ``fps`` is no divisor of 100.
    """
    names = []
    for index, output in enumerate(outputs):
        about = {"diffopt:cell_id": cell_id, "diffopt:seed": str(seed + index)}
        names.append(f"{index}.{'png' if _is_picture(output) else 'gif'}")
        if _is_picture(output):
            _save_png(output, folder / names[-1], about)
        else:
            _save_gif(_frames(output), folder / names[-1], about, fps or UNKNOWN_FPS)
    return tuple(names)


def _is_picture(output: Output) -> bool:
    from PIL.Image import Image

    return isinstance(output, Image)


def _frames(output: Any) -> list[Image]:
    """A picture alone, or the frames of a video; what is not a number in an array becomes black."""
    import numpy as np
    from PIL import Image

    if _is_picture(output):
        return [output]
    if not isinstance(output, np.ndarray):
        return list(output)
    values = np.rint(np.nan_to_num(output, nan=0.0).clip(0, 1) * 255).astype(np.uint8)
    return [Image.fromarray(frame) for frame in values]


def _extrema(picture: Image) -> list[tuple[float, float]]:
    extrema: Any = picture.getextrema()
    return list(extrema) if isinstance(extrema[0], tuple) else [extrema]


def _save_png(picture: Any, path: Path, about: dict[str, str]) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in about.items():
        info.add_text(key, value)
    with file_that_appears_whole(path) as file:
        picture.save(file, "PNG", pnginfo=info)


def _save_gif(frames: list[Image], path: Path, about: dict[str, str], fps: int) -> None:
    """An endless loop. Colours are reduced to 256 per frame."""
    ends = [round(100 * (index + 1) / fps) for index in range(len(frames))]
    shown = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]  # centiseconds
    first, *others = (frame.convert("RGB") for frame in frames)
    with file_that_appears_whole(path) as file:
        first.save(
            file,
            "GIF",
            save_all=True,
            append_images=others,
            duration=[10 * max(LEAST_CENTISECONDS, centiseconds) for centiseconds in shown],
            loop=0,
            comment=" ".join(f"{key}={value}" for key, value in about.items()).encode(),
        )
