"""What diffopt was tested with: the pins of constraints.txt, which the wheel carries along."""

from __future__ import annotations

from pathlib import Path

from diffopt.machine.interpreter import name_of_requirement, requirements_of_diffopt
from diffopt.machine.packages import installed_version

FILE = "constraints.txt"


def tested_versions() -> dict[str, str]:
    """The version of each package that diffopt asks for, by its canonical name."""
    package = Path(__file__).parents[1]
    shipped = package / FILE
    text = (shipped if shipped.is_file() else package.parent / FILE).read_text(encoding="utf-8")
    pins = dict(line.split("==") for line in text.splitlines() if "==" in line and not line.startswith("#"))
    wanted = {name_of_requirement(requirement) for requirement in requirements_of_diffopt()}
    return {name: version for pin, version in pins.items() if (name := name_of_requirement(pin)) in wanted}


def newer_than_tested() -> dict[str, tuple[str, str]]:
    """Of the packages that are installed in a newer version: that version and the tested one, by name.

    What a build adds to a version, such as +cpu, is not newer.
    """
    from packaging.version import InvalidVersion, Version

    found = {}
    for name, tested in tested_versions().items():
        here = installed_version(name)
        try:
            if here is not None and Version(Version(here).public) > Version(tested):
                found[name] = (here, tested)
        except InvalidVersion:  # nobody can say
            continue
    return found


def tested_versions_in_words() -> tuple[str, str | None]:
    """Whether what is here was tested, and what to do where it was not: the tests tell nothing of tomorrow's torch."""
    newer = newer_than_tested()
    if not newer:
        return "no package is newer than what diffopt was tested with", None
    says = "newer than tested: " + ", ".join(
        f"{name} {here} (tested {tested})" for name, (here, tested) in newer.items()
    )
    pins = " ".join(f"{name}=={tested}" for name, (_, tested) in newer.items())
    return says, f"if something fails that should work, try the tested: pip install {pins}"
