"""Which Python runs a cell's worker: the options of the ``runtime`` group. Data; machine/interpreter.py looks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import Field

from diffopt.errors import UsageError
from diffopt.schema.record import Descriptive, Frozen


class Runtime(Frozen):
    """An interpreter. Ids and tables know it by its name; where it lies is no part of what was asked."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    python: Annotated[str | None, Descriptive()]  # a path, or a name that PATH has; None: the one that runs diffopt


CURRENT = Runtime(name="current", python=None)


def resolve_runtime(data: Mapping[str, Any], option: str) -> dict[str, Any]:
    """The composed group with its name filled in.

    Args:
        option: the one that was chosen, whose name the runtime has where it gives none.

    Raises:
        UsageError: there is no interpreter, or one where none can be.
    """
    found = {**data, "name": option} if data.get("name", "") is None else dict(data)
    name, python = found.get("name"), found.get("python")
    if name == CURRENT.name and python is not None:
        raise UsageError(
            f"runtime.python={python}: runtime={CURRENT.name} is the Python that runs diffopt. Choose runtime=python; "
            f"to sweep both, write conf/runtime/NAME.yaml with `defaults: [python, _self_]` and `python: {python}`, "
            f"and choose runtime={CURRENT.name},NAME with --trust-config-dir conf."
        )
    if name != CURRENT.name and python is None:
        raise UsageError(f"runtime={name} names no interpreter: add runtime.python=/path/to/venv/bin/python.")
    return found


def check_runtime_names(runtimes: Iterable[Runtime]) -> None:
    """Raises UsageError where two interpreters have one name: their rows would be one."""
    known: dict[str, str | None] = {}
    for runtime in runtimes:
        if (other := known.setdefault(runtime.name, runtime.python)) != runtime.python:
            raise UsageError(
                f"runtime.python={other} and {runtime.python} are both named '{runtime.name}'. Give each a name, by "
                f"which ids and tables tell them apart: an option of its own in conf/runtime/, with "
                f"--trust-config-dir conf."
            )
