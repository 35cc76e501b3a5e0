"""Pictures that a pipeline is given: looked up and checked when a recipe is composed, opened again by its worker.

A picture counts by the SHA-256 of its file, so that a recipe says what was really put in. Imports Pillow only where a
picture is opened, since most plans have none.
"""

from __future__ import annotations

import functools
import io
import math
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffopt.errors import Refusal, UsageError
from diffopt.machine.content import Stamp, file_stamp, sha256_of_opened
from diffopt.machine.paths import user_path
from diffopt.machine.reading import MIB, opened_file
from diffopt.schema.words import did_you_mean, value_in_words
from diffopt.schema.workload import PICTURES

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffopt.schema.workload import Picture, Resample, ResizeMode, Workload

SHIPPED = Path(__file__).parent / "inputs"  # drawn by scripts/make_inputs
FORMATS = ("PNG", "JPEG", "WEBP")
SAME_SHAPE = 1.03  # of two quotients of width and height; sizes are multiples of blocks
LARGEST = 512 * MIB  # of a picture's file
MOST_PIXELS = 2**26  # 8192 x 8192; what decodes to more is a mistake, or a bomb


def shipped_pictures() -> list[str]:
    """Names of the pictures that diffopt brings along."""
    return sorted(path.stem for path in SHIPPED.glob("*.png"))


def resolve_picture(given: Any, key: str) -> dict[str, str]:
    """The keys of :class:`diffopt.schema.workload.Picture`; resolving them once more changes nothing.

    Args:
        given: the name of a shipped picture; a file (anything with a suffix or a slash), relative to the working
            directory; or a mapping of ``path``, which is one of the two, and ``content``, null or what it must be.
        key: the key of the command line that it stands at.

    Raises:
        UsageError: there is no such picture, it cannot be read, or its content is another.
    """
    name, content = given, None
    if isinstance(given, dict) and set(given) == {"path", "content"}:
        name, content = given["path"], given["content"]
    if not isinstance(name, str) or not isinstance(content, str | None):
        raise UsageError(
            f"{key}={value_in_words(given)}: give the path of a picture, or one of {', '.join(shipped_pictures())}."
        )
    if is_picture_file(name):
        file = user_path(name, key).absolute()
    elif name in shipped_pictures():
        file = SHIPPED / f"{name}.png"
    else:
        raise UsageError(
            f"{key}={name}: diffopt brings no picture of that name along.{did_you_mean(name, shipped_pictures())} It "
            f"has {', '.join(shipped_pictures())}; a file of yours has a suffix or a slash, such as ./{name}."
        )
    found = _content_of_picture(file, f"{key}={name}")
    if content not in (None, found):
        raise UsageError(
            f"{key}={name}: this is not the picture that the recipe was made with (its SHA-256 begins with "
            f"{found[:12]}, the recipe's with {content[:12]}); {key}.content=null takes it."
        )
    return {"path": str(file) if is_picture_file(name) else name, "content": found}


def notes_on_pictures(workload: Workload, block: int) -> Iterator[str]:
    """A note on each file whose picture loses its shape in the workload's size; shipped pictures are of any shape.

    Args:
        block: pixels that the model's sizes are multiples of.
    """
    asked = workload.width, workload.height
    for key in PICTURES if workload.resize_mode == "default" else ():
        given: Picture | None = getattr(workload, key)
        if given is None or not is_picture_file(given.path):
            continue
        path = Path(given.path)
        width, height = _checked(path, f"workload.{key}={path.name}", file_stamp(path))[1]
        shape = width / height
        if not 1 / SAME_SHAPE < shape / (asked[0] / asked[1]) < SAME_SHAPE:
            fit = _nearest_size(shape, asked, block)
            near = f"workload.width={fit[0]} workload.height={fit[1]} is nearly its own, and " if fit != asked else ""
            yield (
                f"workload.{key}={path.name}: a picture of {width}x{height} is stretched to {asked[0]}x{asked[1]}, "
                f"another shape; {near}workload.resize_mode=crop keeps it, without what is over"
            )


def _nearest_size(shape: float, asked: tuple[int, int], block: int) -> tuple[int, int]:
    """The size in multiples of ``block`` that is nearest to a shape (width over height), of about as many pixels."""
    root = math.sqrt(asked[0] * asked[1])
    widths, heights = (
        [max(math.floor(side / block) + more, 1) * block for more in (0, 1)]
        for side in (root * shape**0.5, root / shape**0.5)
    )
    sizes = [asked, *((width, height) for width in widths for height in heights)]
    return min(sizes, key=lambda size: abs(math.log(shape * size[1] / size[0])))


def open_picture(
    picture: Picture,
    size: tuple[int, int],
    mode: Literal["RGB", "L"] = "RGB",
    *,
    resample: Resample | None = None,
    resize_mode: ResizeMode = "default",
) -> Image:
    """The picture as a pipeline takes it: upright, without transparency, of ``size`` (width, height).

    Args:
        mode: ``L`` for a mask. What is transparent counts as black there, and as white in ``RGB``.
        resample: Pillow's filter. None: lanczos, and for a mask nearest, which makes no values between its own.
        resize_mode: ``default`` stretches; ``fill`` and ``crop`` are diffusers' and keep the shape.

    Raises:
        Refusal: this machine has no such file, or another one than the recipe was made with.
    """
    name = Path(picture.path).name  # no folder of this machine: what is said here goes into a row
    path = Path(picture.path) if is_picture_file(picture.path) else SHIPPED / f"{picture.path}.png"
    try:
        with opened_file(path, f"the picture {name}", LARGEST) as file:
            if sha256_of_opened(file) != picture.content:
                raise Refusal(f"the picture {name} is not the one that the recipe was made with; compose it again")
            decoded = _decode(file, f"the picture {name}")
    except OSError as error:
        raise Refusal(f"the picture {name} cannot be read here: {error.strerror}") from error
    except UsageError as error:
        raise Refusal(str(error)) from error
    return _resized(
        _flat(decoded, mode), size, resample or ("nearest" if mode == "L" else "lanczos"), resize_mode, name
    )


def _resized(picture: Image, size: tuple[int, int], resample: Resample, mode: ResizeMode, name: str) -> Image:
    """Raises Refusal where one side would have no pixel."""
    if mode == "default":
        from PIL.Image import Resampling

        return picture.resize(size, Resampling[resample.upper()])
    from diffusers.image_processor import VaeImageProcessor  # a worker's

    width, height = size
    try:
        made: Image = VaeImageProcessor(resample=resample).resize(picture, height, width, resize_mode=mode)
    except ValueError as error:
        raise Refusal(f"workload.resize_mode={mode}: the picture {name} is too narrow for {width}x{height}") from error
    return made.convert(picture.mode)


def is_picture_file(name: str) -> bool:
    """Whether a picture's path is a file of the user's, and not the name of a shipped one."""
    return "/" in name or Path(name).suffix != ""


def _content_of_picture(path: Path, said: str) -> str:
    """SHA-256 of a file that is a picture. Raises UsageError, beginning with ``said``, where it is none."""
    try:
        if not path.exists():
            raise UsageError(f"{said}: there is no such file.")
        return _checked(path, said, file_stamp(path))[0]
    except OSError as error:
        raise UsageError(f"{said} cannot be read: {error.strerror}.") from error


@functools.cache
def _checked(path: Path, said: str, _stamp: Stamp) -> tuple[str, tuple[int, int]]:
    """SHA-256 and size. Once per process and version of the file: all cells of a sweep may have the same."""
    with opened_file(path, said, LARGEST) as file:
        size = _decode(file, said).size
        return sha256_of_opened(file), size


def _decode(file: io.BufferedReader, said: str) -> Image:
    """The pixels of a picture, upright. Raises UsageError, beginning with ``said``, for what is none."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, and about sizes that are looked at here
            opened = Image.open(file, formats=FORMATS)
            if opened.width * opened.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            if opened.format != "MPO" and getattr(opened, "is_animated", False):  # MPO: a JPEG with others inside
                raise UsageError(f"{said} is animated; give one frame of it as a picture of its own.")
            return ImageOps.exif_transpose(opened)
    except UnidentifiedImageError:
        raise UsageError(f"{said} is not a picture in PNG, JPEG or WebP.") from None
    except Image.DecompressionBombError:
        raise UsageError(f"{said} is too large: it has more than {MOST_PIXELS // 10**6} million pixels.") from None
    except (OSError, SyntaxError, ValueError, struct.error) as error:  # whatever Pillow meets in a damaged file
        raise UsageError(f"{said} is damaged and cannot be decoded: {' '.join(str(error).split())}.") from error


def _flat(picture: Image, mode: Literal["RGB", "L"]) -> Image:
    """``picture`` in ``mode``, on a ground of black for masks and of white for others where it is transparent."""
    import numpy as np
    from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits a pixel, such as depth maps, which Pillow would cut off at 255
        return Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8)).convert(mode)
    if "A" in picture.getbands() or "transparency" in picture.info:
        ground = Image.new("RGBA", picture.size, "black" if mode == "L" else "white")
        picture = Image.alpha_composite(ground, picture.convert("RGBA"))
    return picture.convert(mode)
