"""How cells are run: the options of the ``launch`` group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from diffopt.errors import UsageError
from diffopt.machine.paths import user_path
from diffopt.machine.reading import opened_file
from diffopt.recipe.explain import explain_invalid_recipe
from diffopt.recipe.options import shipped_option
from diffopt.schema.record import Frozen

Seconds = Annotated[float, Field(gt=0)]


class Deadlines(Frozen):
    """How long each phase of a cell may take, in seconds; then its process is killed and the row is ``timeout``."""

    load: Seconds  # starting Python and importing torch included
    optimize: Seconds
    compile: Seconds  # the first call
    warmup: Seconds
    measure: Seconds
    quality: Seconds


class CompileArtifact(Frozen):
    """What compiling left behind, as one file beside the row that another machine can start warm from.

    An artifact is its author's code, so one is loaded only together with the SHA-256 of its content.
    """

    save: bool
    load: str | None  # a file; typed, relative to where the command is given
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None

    @model_validator(mode="after")
    def _pinned(self) -> CompileArtifact:
        if (self.load is None) != (self.sha256 is None):
            raise ValueError(
                "compile_artifact.load and compile_artifact.sha256 go together: an artifact runs its author's code, so "
                "it is loaded only if it is the very file that you trust"
            )
        return self


class Launch(Frozen):
    """Where cells run, and what each of them may take, one process per cell wherever it is."""

    kind: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]  # which launcher: a module of diffopt/run/launchers
    minutes: Annotated[float, Field(gt=0)] | None  # that a sweep may take; None: no limit
    deadlines: Deadlines
    compile_artifact: CompileArtifact
    grace: Seconds  # for a process that was asked to end, or that closed its report, until it is killed


def make_launch(data: Mapping[str, Any]) -> Launch:
    """The composed ``launch`` group as an object. Raises UsageError for a value that it cannot have."""
    try:
        launch = Launch.from_plain(data)
    except ValidationError as error:
        raise UsageError(explain_invalid_recipe(error, prefix="launch")) from error
    if (artifact := launch.compile_artifact.load) is not None:
        _check_artifact(artifact, f"launch.compile_artifact.load={artifact}")
    return launch


def _check_artifact(artifact: str, said: str) -> None:
    """Raises UsageError for what is no file that can be opened; what is in it nobody reads before its hash is known."""
    path = user_path(artifact, "launch.compile_artifact.load")
    if not path.exists():
        raise UsageError(f"{said}: there is no such file.")
    try:
        with opened_file(path, said):
            pass
    except OSError as error:
        raise UsageError(f"{said} cannot be read: {error.strerror}.") from error


def default_launch() -> Launch:
    """The shipped ``launch=local``, for callers in Python that give none."""
    return make_launch(shipped_option("launch", "local"))
