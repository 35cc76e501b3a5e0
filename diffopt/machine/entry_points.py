"""What installed packages offer to diffopt by entry points, found without importing any of it."""

from __future__ import annotations

from importlib.metadata import EntryPoint, distributions, entry_points

PLUGINS = "diffopt.steps"  # their group


def entry_points_of_plugins() -> tuple[list[EntryPoint], dict[str, str]]:
    """What other packages offer, and why that of some cannot be read, by the distribution's name."""
    try:
        return list(entry_points(group=PLUGINS)), {}
    except Exception:  # one damaged file, of whatever distribution, hides those of all: ask each alone
        return _entry_points_one_by_one()


def _entry_points_one_by_one() -> tuple[list[EntryPoint], dict[str, str]]:
    found: list[EntryPoint] = []
    broken: dict[str, str] = {}
    seen: set[str] = set()
    for distribution in distributions():
        name = distribution.name
        if name in seen:  # hidden by one that comes earlier on the path
            continue
        seen.add(name)
        try:
            found += distribution.entry_points.select(group=PLUGINS)
        except Exception as error:  # whatever its file makes of the parser
            broken[name] = f"its entry_points.txt cannot be read: {type(error).__name__}: {error}"
    return found, broken
