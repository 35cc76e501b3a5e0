"""Where the values of a configuration come from, as far as somebody else's file may have set them.

Diffopt's own options and the command line are never noted: what has no origin is theirs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Origin:
    """A recipe file, or a file of a config folder."""

    file: Path
    base: Path  # what its relative paths count from: a recipe file's folder, a config folder's parent
    config_dir: Path | None  # the config folder as it was given; None for a recipe file
    trusted: bool  # whether the command line consents to what it names


Origins = dict[str, Origin]  # by dotted key; what is noted for a key holds for all below it that has no note


def origin_of_recipe_file(path: Path) -> Origin:
    """The origin of what a recipe file says. Nothing makes one trusted: it may be anybody's."""
    return Origin(path, Path(os.path.abspath(path)).parent, None, trusted=False)


def origin_of_option(config_dir: Path, name: str, *, trusted: bool) -> Origin:
    """The origin of what ``config_dir/name`` says. Links are not followed: ``./conf`` counts from where it stands."""
    return Origin(config_dir / name, Path(os.path.abspath(config_dir)).parent, config_dir, trusted)


def note_origin(origins: Origins, key: str, value: Any, origin: Origin | None) -> None:
    """``value`` is merged into the configuration at ``key``: all that it sets comes from ``origin`` now.

    Args:
        key: dotted, as on the command line; empty for the whole configuration.
        origin: None for diffopt's own options and the command line.
    """
    if origin is None and not origins:
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            note_origin(origins, f"{key}.{name}" if key else name, inner, origin)
        return
    if origin is None and origin_of(origins, key) is None and not _below(origins, key):
        return
    for stale in _below(origins, key):
        del origins[stale]
    origins[key] = origin if origin is not None else OWN


def origin_of(origins: Mapping[str, Origin], key: str) -> Origin | None:
    """What set the value at ``key``; None for diffopt's own options and the command line."""
    parts = key.split(".")
    for count in range(len(parts), 0, -1):
        if (found := origins.get(".".join(parts[:count]))) is not None:
            return None if found is OWN else found
    return None


def origins_of_groups(origins: Mapping[str, Origin], groups: frozenset[str]) -> Origins:
    """What is noted for values of these groups."""
    return {key: origin for key, origin in origins.items() if key.split(".")[0] in groups}


def _below(origins: Mapping[str, Origin], key: str) -> list[str]:
    return [known for known in origins if known == key or known.startswith(f"{key}.")]


OWN = Origin(Path(), Path(), None, trusted=True)  # set again by diffopt or the command line, over somebody's value
