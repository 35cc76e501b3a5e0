"""The pictures and videos of a row: saved with what made them, and looked at for the plainest of defects.

A video is a list of frames, or an array (frames, height, width, 3) of 0 to 1. Its frames are kept as they are, as PNGs
in a folder, since quality is judged by them. Beside it lie an animated GIF, which every viewer shows and which needs no
encoder, and an MP4 where the packages of the extra ``[video]`` are installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffopt.machine.files import FOLDER_FOR_ITS_USER, file_that_appears_whole, open_new_file
from diffopt.machine.packages import unmet_packages
from diffopt.results.frames import frames_folder

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    Output = Image | list[Image] | np.ndarray[Any, Any]

UNKNOWN_FPS = 8  # frames per second, where the model does not say
LEAST_CENTISECONDS = 2  # per frame of a GIF; viewers show shorter ones slowly
MP4_PACKAGES = ("imageio", "imageio-ffmpeg")


def is_constant_picture(output: Output) -> bool:
    """Whether all pixels are equal, in each frame of a video: the picture of NaN is black."""
    return all(low == high for picture in _frames(output) for low, high in _extrema(picture))


def save_pictures(
    outputs: Sequence[Output],
    folder: Path,
    cell_id: str,
    seeds: Sequence[int],
    *,
    first: int = 0,
    fps: int | None = None,
) -> tuple[str, ...]:
    """Save pictures as ``0.png``, ``1.png``, … and videos as ``0.gif``, … with ``0/0000.png``, … and maybe ``0.mp4``.

    Returns the names of the PNGs and GIFs, which count from ``first``. The metadata has the cell's id and the seed.
    A GIF counts in hundredths of a second, so a video keeps its length and its frames are shown for unequal times where
    ``fps`` is no divisor of 100.
    """
    names = []
    for index, (output, seed) in enumerate(zip(outputs, seeds, strict=True), first):
        about = {"diffopt:cell_id": cell_id, "diffopt:seed": str(seed)}
        names.append(f"{index}.{'png' if _is_picture(output) else 'gif'}")
        if _is_picture(output):
            _save_png(output, folder / names[-1], about)
        else:
            _save_video(_frames(output), folder / names[-1], about, fps or UNKNOWN_FPS)
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


def _save_video(frames: list[Image], gif: Path, about: dict[str, str], fps: int) -> None:
    kept = frames_folder(gif.parent, gif.name)
    kept.mkdir(FOLDER_FOR_ITS_USER)
    for number, frame in enumerate(frames):
        _save_png(frame, kept / f"{number:04d}.png", {**about, "diffopt:frame": str(number)})
    _save_gif(frames, gif, about, fps)
    if not unmet_packages(MP4_PACKAGES):
        _save_mp4(frames, gif.with_suffix(".mp4"), about, fps)


def _save_mp4(frames: list[Image], path: Path, about: dict[str, str], fps: int) -> None:
    """H.264, whose sizes are even: an odd one grows by a pixel."""
    import imageio.v2 as imageio
    import numpy as np

    open_new_file(path).close()  # for its user alone, in the place of what was there; the encoder writes into it
    said = ["-metadata", f"comment={_line(about)}"]
    writer: Any = imageio.get_writer(path, format="FFMPEG", fps=fps, macro_block_size=2, output_params=said)
    with writer:
        for frame in frames:
            writer.append_data(np.asarray(frame.convert("RGB")))


def _line(about: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in about.items())


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
            comment=_line(about).encode(),
        )
