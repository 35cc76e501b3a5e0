"""The built-in model's language and its referee: which prompts it understands, and whether a picture is right.

NumPy and Pillow only. Training and evaluation live beside this in modules that nothing else imports.
"""

from __future__ import annotations

from diffopt.pipeline.quality.checker import Reading, SceneVerdict, check, read
from diffopt.pipeline.quality.scenes import Scene, all_scenes, centred_scenes, held_out, parse
from scripts.maintain.tiny.pictures import draw

__all__ = [
    "Reading",
    "Scene",
    "SceneVerdict",
    "all_scenes",
    "centred_scenes",
    "check",
    "draw",
    "held_out",
    "parse",
    "read",
]
