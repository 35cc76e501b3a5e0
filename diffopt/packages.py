"""Installed distributions, asked without importing them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import Requirement


def installed(name: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def missing(requirements: Iterable[str]) -> list[str]:
    """Those of the PEP 508 requirements that this environment does not meet."""
    unmet = []
    for text in requirements:
        requirement = Requirement(text)
        found = installed(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            unmet.append(text)
    return unmet


def how_to_install(requirements: Iterable[str]) -> str:
    """The reason of a row that ``missing`` packages keep from running."""
    texts = list(requirements)
    return f"needs {', '.join(texts)}: pip install {' '.join(repr(text) for text in texts)}"
