"""diffopt: declarative optimization of Hugging Face Diffusers pipelines.

    import diffopt

    pipe = diffopt.load("pytorch2", overrides=["model=sd15"])  # an optimized DiffusionPipeline
    pipe("a photo of an astronaut").images[0]

Importing this imports neither torch nor diffusers, and each name its own module only when it is asked for.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from diffopt.version import __version__ as __version__

if TYPE_CHECKING:
    from diffopt.api import compose, load, optimize, plan, run
    from diffopt.errors import DiffoptError, NoEffect, Refusal, UsageError
    from diffopt.recipe.cell import Cell
    from diffopt.recipe.recipe import Recipe
    from diffopt.results.result import Result
    from diffopt.results.study import Study
    from diffopt.steps.quant.saved import save_quantized

__all__ = [
    "Cell",
    "DiffoptError",
    "NoEffect",
    "Recipe",
    "Refusal",
    "Result",
    "Study",
    "UsageError",
    "compose",
    "load",
    "optimize",
    "plan",
    "run",
    "save_quantized",
]

_HOMES = {
    "api": ("compose", "load", "optimize", "plan", "run"),
    "recipe.cell": ("Cell",),
    "errors": ("DiffoptError", "NoEffect", "Refusal", "UsageError"),
    "steps.quant.saved": ("save_quantized",),
    "recipe.recipe": ("Recipe",),
    "results.result": ("Result",),
    "results.study": ("Study",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"diffopt.{module}"), name)
    raise AttributeError(f"module 'diffopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})


class _Package(ModuleType):
    """Importing a submodule binds it to its package; here not where it has the name of a public function.

    ``diffopt.run`` is the function, whatever was imported before it; the package is had with ``from diffopt.run.sweep
    import run_all``, and ``import diffopt.run.sweep as name`` fails.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
