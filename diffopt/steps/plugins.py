"""The steps of other packages: loaded where they can be, named where they cannot.

Whatever a plug-in does wrong is its own affair: the verbs work without it, say once that it is left out and why, and a
recipe that asks for a kind that is not there fails with the same words. One that is there and fails later, when its
steps are asked, is named then; see ``diffopt.steps.foreign``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint

from diffopt.machine.entry_points import PLUGINS, entry_points_of_plugins
from diffopt.schema.step import all_registered_or_none
from diffopt.schema.words import one_line
from diffopt.steps.foreign import ask_with_care

_left_out: list[LeftOut] = []


@dataclass(frozen=True)
class LeftOut:
    """A plug-in that is not used."""

    name: str
    distribution: str  # with its version
    reason: str

    def __str__(self) -> str:
        return f"the plug-in {self.name} ({self.distribution}) is left out: {self.reason}"


def load_plugins() -> None:
    """Import every plug-in, each whole or not at all; called once, when ``diffopt.steps`` is imported."""
    found, broken = entry_points_of_plugins()
    _left_out[:] = [LeftOut(PLUGINS, name, reason) for name, reason in broken.items()]
    for entry in found:
        try:
            said = f"the plug-in {entry.name} ({_distribution(entry)})"
            with all_registered_or_none(partial(ask_with_care, plugin=said)):
                entry.load()
        except (Exception, SystemExit) as error:  # the border to code of others: its mistakes must not become ours
            _left_out.append(LeftOut(entry.name, _distribution(entry), f"{type(error).__name__}: {one_line(error)}"))


def plugins_left_out() -> tuple[LeftOut, ...]:
    """The plug-ins that are not used, and why."""
    return tuple(_left_out)


def _distribution(entry: EntryPoint) -> str:
    return "unknown" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
