"""Another Python: where it is, what is installed there, and how it finds this diffopt. Never imports torch."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from shlex import quote

from pydantic import ValidationError

from diffopt.errors import UsageError
from diffopt.machine.entry_points import entry_points_of_plugins
from diffopt.machine.paths import shipped_conf, user_path
from diffopt.machine.process import lines_of_program
from diffopt.machine.temporary import temporary_folder
from diffopt.schema.record import Frozen
from diffopt.schema.runtime import CURRENT, Runtime, check_runtime_names
from diffopt.schema.step import Step
from diffopt.schema.words import value_in_words

DISTRIBUTION = "diffopt-toolkit"
# what only the command line imports, and what only some samplers do, which ask for it themselves
NOT_FOR_WORKERS = frozenset({"hydra-core", "rich", "scipy"})
ANSWER_S = 60.0  # a Python on a slow network disk starts in seconds
LONGEST_ANSWER = 2**22  # bytes; a distribution takes about thirty
# `metadata[…]` of a broken distribution, without a name, is deprecated; `get` is not
QUESTION = """
import json, platform
from importlib.metadata import distributions
found = [(each.metadata.get("Name"), each.version) for each in distributions()]
print(json.dumps({"python": platform.python_version(), "found": [pair for pair in found if all(pair)]}))
"""


class _Answer(Frozen):
    python: str
    found: tuple[tuple[str, str], ...]  # name and version, in the order of that interpreter's path


@dataclass(frozen=True)
class Interpreter:
    """A Python other than the one that runs diffopt."""

    name: str  # the runtime's
    python: str  # absolute path, links not followed: a venv's is one
    version: str  # such as 3.12.4
    distributions: Mapping[str, str]  # version by canonical name
    variables: Mapping[str, str]  # of the environment that a worker needs there

    def installed(self, distribution: str) -> str | None:
        """The version of a distribution there, or None."""
        return self.distributions.get(_canonical_name(distribution))

    @property
    def markers(self) -> dict[str, str]:
        """What environment markers (PEP 508) see there, as far as it may differ from here."""
        return {"python_version": ".".join(self.version.split(".")[:2]), "python_full_version": self.version}

    @property
    def pip(self) -> str:
        """The command that installs something there."""
        command = f"{quote(self.python)} -m pip"
        return command if self.installed("pip") else f"{quote(self.python)} -m ensurepip && {command}"


@contextmanager
def interpreters(runtimes: Iterable[Runtime]) -> Iterator[Mapping[str, Interpreter]]:
    """Each runtime's interpreter by the runtime's name, without the current one; asked once.

    While this lasts, workers find the package of this diffopt in a folder of its own: its real parent may be a whole
    site-packages, with another torch in it.

    Raises UsageError for what is not there, or is no Python that diffopt can use.
    """
    asked = list(dict.fromkeys(runtimes))
    check_runtime_names(asked)
    others = [runtime for runtime in asked if runtime != CURRENT]
    if not others:
        yield {}
        return
    with temporary_folder("package") as place:
        _link_package(place)
        given = os.environ.get("PYTHONPATH")
        # an empty PYTHONHOME is none; the one of this Python would be another's ruin
        variables = {"PYTHONPATH": f"{place}{os.pathsep}{given}" if given else str(place), "PYTHONHOME": ""}
        yield {runtime.name: ask_interpreter(runtime, variables) for runtime in others}


def why_interpreter_is_absent(runtime: Runtime) -> str | None:
    """Why a runtime cannot be there, without starting anything; None where a program lies at its path."""
    if runtime == CURRENT or (runtime.python is not None and interpreter_path(runtime.python) is not None):
        return None
    return f"runtime={runtime.name}: runtime.python={value_in_words(runtime.python)} is no program here"


def check_interpreters_exist(runtimes: Iterable[Runtime]) -> None:
    """Raises UsageError for the first one that cannot be there; starts nothing."""
    for runtime in runtimes:
        if (reason := why_interpreter_is_absent(runtime)) is not None:
            raise UsageError(f"{reason}. Give the path of a python: runtime.python=/path/to/venv/bin/python.")


def ask_interpreter(runtime: Runtime, variables: Mapping[str, str]) -> Interpreter:
    """Start the interpreter once and let it list what is installed. Raises UsageError when it does not answer."""
    check_interpreters_exist([runtime])
    python = interpreter_path(runtime.python or "")
    assert python is not None, "it is present"
    command = [python, "-P", "-c", QUESTION]
    said, complaint = lines_of_program(command, {**os.environ, **variables}, ANSWER_S, longest=LONGEST_ANSWER)
    try:
        answer = _Answer.model_validate_json(said[-1] if said else "")
    except ValidationError as error:  # what is older than 3.11 does not know -P
        why = f": {complaint[0]}" if complaint else ""
        raise UsageError(f"runtime={runtime.name}: {python} is no Python 3.11 or newer that works{why}.") from error
    distributions: dict[str, str] = {}
    for name, version in answer.found:
        distributions.setdefault(_canonical_name(name), version)
    return Interpreter(runtime.name, python, answer.python, distributions, variables)


def packages_of_foreign_steps(steps: Iterable[Step]) -> tuple[str, ...]:
    """The distributions that steps come from which are not diffopt's own; a worker imports them, too."""
    modules = {type(step).__module__.split(".")[0] for step in steps}
    entries, _ = entry_points_of_plugins()
    named = {entry.dist.name: re.split("[.:]", entry.value)[0] for entry in entries if entry.dist}
    return tuple(name for name, module in named.items() if module in modules)


def packages_for_workers() -> tuple[str, ...]:
    """What diffopt needs where a worker runs."""
    texts = requirements_of_diffopt()
    return tuple(text for text in texts if name_of_requirement(text) not in NOT_FOR_WORKERS)


def requirements_of_diffopt() -> list[str]:
    """The requirements of its own distribution, or of its checkout."""
    package = Path(__file__).parents[1]
    if (package / "conf").is_dir():
        return metadata.requires(DISTRIBUTION) or []
    import tomllib

    project = tomllib.loads((package.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts: list[str] = project["dependencies"]
    return texts


def _canonical_name(distribution: str) -> str:
    """As the packages' index spells it. Imported here, for a plan seldom asks."""
    from packaging.utils import canonicalize_name

    return canonicalize_name(distribution)


def name_of_requirement(text: str) -> str:
    """The canonical name of the distribution that a PEP 508 requirement is of."""
    from packaging.requirements import Requirement

    return _canonical_name(Requirement(text).name)


def interpreter_path(text: str) -> str | None:
    """The absolute path of a program, links not followed; None where there is none. Starts nothing."""
    path = user_path(text, "runtime.python")
    found = shutil.which(os.path.abspath(path) if "/" in text else path)  # "./python" is none of PATH's
    return os.path.abspath(found) if found is not None and os.path.isfile(found) else None


def _link_package(folder: Path) -> None:
    """``folder/diffopt``, whose entries are those of this package, with ``conf`` inside as when it is installed."""
    package = folder / "diffopt"
    package.mkdir()
    for entry in Path(__file__).parents[1].absolute().iterdir():
        if entry.name not in ("conf", "__pycache__"):
            (package / entry.name).symlink_to(entry)
    (package / "conf").symlink_to(shipped_conf().absolute())
