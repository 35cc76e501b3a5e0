"""diffopt: declarative optimization of Hugging Face Diffusers pipelines.

    import diffopt

    pipe = diffopt.load("pytorch2", overrides=["model=sd15"])  # an optimized DiffusionPipeline
    pipe("a photo of an astronaut").images[0]

Importing this imports neither torch nor diffusers, and each name its own module only when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffopt.api import load, optimize, run
    from diffopt.cell import Cell
    from diffopt.errors import DiffoptError, NoEffect, Refusal, UsageError
    from diffopt.quantized_files import save_quantized
    from diffopt.recipe import Recipe
    from diffopt.result import Result
    from diffopt.study import Study

__version__ = "0.1.0"

__all__ = [
    "Cell",
    "DiffoptError",
    "NoEffect",
    "Recipe",
    "Refusal",
    "Result",
    "Study",
    "UsageError",
    "load",
    "optimize",
    "run",
    "save_quantized",
]

_HOMES = {
    "api": ("load", "optimize", "run"),
    "cell": ("Cell",),
    "errors": ("DiffoptError", "NoEffect", "Refusal", "UsageError"),
    "quantized_files": ("save_quantized",),
    "recipe": ("Recipe",),
    "result": ("Result",),
    "study": ("Study",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"diffopt.{module}"), name)
    raise AttributeError(f"module 'diffopt' has no attribute {name!r}")
