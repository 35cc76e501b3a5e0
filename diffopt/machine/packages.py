"""Installed distributions, asked without importing them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from diffopt.machine.interpreter import Interpreter
    from diffopt.schema.step import Requirements


def installed_version(name: str, there: Interpreter | None = None) -> str | None:
    """The version of a distribution, or None; ``there``: in another interpreter, as in the functions below."""
    if there is not None:
        return there.installed(name)
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def unmet_packages(requirements: Iterable[str], there: Interpreter | None = None) -> tuple[str, ...]:
    """Those of the PEP 508 requirements that this environment does not meet, in their order, each once."""
    from packaging.requirements import Requirement  # a start of its own, of which most plans need nothing

    return tuple(dict.fromkeys(text for text in requirements if not _met(Requirement(text), there)))


def _met(requirement: Requirement, there: Interpreter | None) -> bool:
    markers = None if there is None else there.markers
    if requirement.marker is not None and not requirement.marker.evaluate(markers):
        return True  # not for this platform
    found = installed_version(requirement.name, there)
    return found is not None and requirement.specifier.contains(found, prereleases=True)


def reason_of_lacking(needs: Iterable[Requirements], there: Interpreter | None = None) -> str | None:
    """The reason of a row that missing packages keep from running, and how to get them; None where all are here."""
    pip, place = ("pip", "") if there is None else (there.pip, f"runtime={there.name} ")
    absent: dict[str | None, list[str]] = {}  # by how to get them, which pip does in one command
    for need in needs:
        absent.setdefault(need.install, []).extend(unmet_packages(need.packages, there))
    reasons = [how_to_install(dict.fromkeys(texts), how, pip) for how, texts in absent.items() if texts]
    return "\n".join(place + reason for reason in reasons) or None


def how_to_install(requirements: Iterable[str], install: str | None = None, pip: str = "pip") -> str:
    """``install`` says how, where pip alone would not do."""
    texts = list(requirements)
    return f"needs {', '.join(texts)}: {install or pip + ' install ' + ' '.join(repr(text) for text in texts)}"
