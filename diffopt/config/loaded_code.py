"""What a plan tells of code: everything beside diffopt's own that would be started or loaded, and from where."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from diffopt.machine.interpreter import interpreter_path, packages_of_foreign_steps
from diffopt.machine.paths import user_path
from diffopt.schema.runtime import CURRENT

if TYPE_CHECKING:
    from diffopt.config.request import Request


@dataclass(frozen=True)
class Code:
    """One thing that runs."""

    kind: str  # interpreter, artifact, kernel, package
    source: str
    by: str  # what chose it, in the words of the command line

    def __str__(self) -> str:
        return f"{self.kind} {self.source} ({self.by})"

    def to_json(self) -> dict[str, str]:
        """For ``diffopt plan --json``."""
        return asdict(self)


def loaded_code(request: Request) -> tuple[Code, ...]:
    """The interpreter, the compile artifact, the kernels and the packages with steps of a cell; none, most often."""
    return tuple(_all(request))


def _all(request: Request) -> Iterator[Code]:
    runtime, artifact = request.cell.runtime, request.launch.compile_artifact
    if runtime != CURRENT:
        named = str(runtime.python)
        yield Code("interpreter", interpreter_path(named) or named, f"runtime={runtime.name}")
    if artifact.load is not None:
        path = os.path.abspath(user_path(artifact.load, "launch.compile_artifact.load"))
        yield Code("artifact", f"{path}, SHA-256 {artifact.sha256}", "launch.compile_artifact")
    if (hub := getattr(request.cell.recipe.attention, "hub", None)) is not None:
        commit = hub.revision or "(no commit named yet)"
        yield Code("kernel", f"https://huggingface.co/{hub.repository}@{commit}", _option(request, "attention"))
    for group, step in request.cell.recipe.steps:
        if not type(step).__module__.startswith("diffopt."):
            for name in packages_of_foreign_steps([step]):
                yield Code("package", f"{name} {metadata.version(name)}", _option(request, group))


def _option(request: Request, group: str) -> str:
    return f"{group}={request.cell.choices.get(group)}"
