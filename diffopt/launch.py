"""How cells are run: the options of the ``launch`` group."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from diffopt.errors import UsageError
from diffopt.explain import explain
from diffopt.step import Frozen

Seconds = Annotated[float, Field(gt=0)]


class Deadlines(Frozen):
    """How long each stage of a cell may take, in seconds; then its process is killed and the row is ``timeout``."""

    load: Seconds  # starting Python and importing torch included
    optimize: Seconds
    compile: Seconds  # the first call
    warmup: Seconds
    measure: Seconds
    quality: Seconds


class Launch(Frozen):
    """``local``: one process per cell on this machine; one at a time on the CPU, one per fitting GPU on GPUs."""

    kind: Literal["local"]
    deadlines: Deadlines
    grace: Seconds  # for a process that was asked to end, or that closed its report, until it is killed


def make_launch(data: Mapping[str, Any]) -> Launch:
    """The composed ``launch`` group as an object. Raises UsageError for a value that it cannot have."""
    try:
        return Launch.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise UsageError(explain(error, prefix="launch")) from error


def default_launch(conf: Path) -> Launch:
    """The shipped ``launch=local``, for callers in Python that give none."""
    return make_launch(yaml.safe_load((conf / "launch" / "local.yaml").read_text(encoding="utf-8")))
