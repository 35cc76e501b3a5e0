"""Installed distributions, asked without importing them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

if TYPE_CHECKING:
    from diffopt.step import Requirements


def installed(name: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def missing(requirements: Iterable[str]) -> tuple[str, ...]:
    """Those of the PEP 508 requirements that this environment does not meet, in their order, each once."""
    return tuple(dict.fromkeys(text for text in requirements if not _met(Requirement(text))))


def _met(requirement: Requirement) -> bool:
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True  # not for this platform
    found = installed(requirement.name)
    return found is not None and requirement.specifier.contains(found, prereleases=True)


def lacking(needs: Iterable[Requirements]) -> str | None:
    """The reason of a row that missing packages keep from running, and how to get them; None where all are here."""
    reasons = [how_to_install(absent, need.install) for need in needs if (absent := missing(need.packages))]
    return "\n".join(dict.fromkeys(reasons)) or None


def how_to_install(requirements: Iterable[str], install: str | None = None) -> str:
    """``install`` says how, where pip alone would not do."""
    texts = list(requirements)
    return f"needs {', '.join(texts)}: {install or 'pip install ' + ' '.join(repr(text) for text in texts)}"
