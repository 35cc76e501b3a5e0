"""The family of a pipeline class, and what the name of a class in none tells."""

from __future__ import annotations

import functools
import re

from diffopt.models.classes import FAMILIES, Family
from diffopt.schema.model import Task

# What the name of a class in no family tells, the first that fits; None: it asks for more than one of our tasks has.
NAMES: tuple[tuple[str, Task | None], ...] = (
    (r"Control.*(Img2Img|Inpaint)|Combined|Prior|VideoToVideo|Video2Video|Modular", None),
    (r"Inpaint|Fill", "inpaint"),
    (r"Img2Img|Image2Image", "img2img"),
    (r"ImageToVideo|Image2Video|I2V", "img2video"),
    (r"Upscale|SuperRes", "upscale"),
    (r"Edit|Pix2Pix", "edit"),
    (r"ControlNet", "controlnet"),
    (r"TextToVideo|T2V|Video", "txt2video"),
    (r"TextToImage|T2I", "txt2img"),
)


@functools.cache
def family_of_pipeline(pipeline: str) -> Family | None:
    """The family that a pipeline class belongs to; None when it is in none."""
    return next((entry for entry in FAMILIES.values() if pipeline in entry.classes.values()), None)


def task_told_by_class_name(pipeline: str) -> Task | None:
    """What a class in no family is for, as far as its name tells."""
    return next((task for words, task in NAMES if re.search(words, pipeline)), None)
