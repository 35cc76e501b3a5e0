"""Where and when the cells of a sweep run.

A launcher is a module here that has the function of :class:`Launcher`; ``launch.kind`` is its name. Another one is
another module, and an option in ``conf/launch``.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from diffopt.errors import UsageError
from diffopt.schema.words import did_you_mean

if TYPE_CHECKING:
    from diffopt.recipe.cell import Cell
    from diffopt.results.result import Result
    from diffopt.run.runner import Runner


class Launcher(Protocol):
    """Cells in, rows out."""

    def run(self, cells: Sequence[Cell], runner: Runner) -> Sequence[Result]:
        """Take each cell to its row, and return the rows in any order; fewer where ``runner.stop`` was asked for.

        With ``measure.rounds`` it is called once for each round: ``runner.take`` has a row for a cell only in the last.

        Args:
            cells: distinct ones, those without a row so far.
            runner: takes a cell to its row on the machine that calls it, and tells the progress of the sweep.
        """


def check_launcher(kind: str) -> None:
    """Raises UsageError where there is no launcher of that kind. Imports none."""
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if kind not in known:
        raise UsageError(
            f"launch.kind={kind}: there is no such launcher.{did_you_mean(kind, known)} There is {', '.join(known)}."
        )


def launcher(kind: str) -> Launcher:
    """Find the launcher of a kind. Raises UsageError where there is none."""
    check_launcher(kind)
    return cast(Launcher, import_module(f"{__name__}.{kind}"))
