"""One point of a sweep: recipe, workload, and how it is measured and looked at."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated

from pydantic import Field, model_validator

from diffopt.recipe.recipe import Recipe
from diffopt.schema.quality import NOTHING, Quality
from diffopt.schema.record import Descriptive, Frozen, record_digest, record_identity
from diffopt.schema.runtime import CURRENT, Runtime
from diffopt.schema.step import Site
from diffopt.schema.workload import Workload


class Measure(Frozen):
    """The measuring protocol. Compiling, first call and warm-up are never in the samples."""

    warmup: Annotated[int, Field(ge=1)]  # calls after the first one and before the samples
    samples: Annotated[int, Field(ge=2)]  # at least this many timed calls
    seconds: Annotated[float, Field(ge=0)]  # and at least this long
    max_samples: Annotated[int, Field(ge=2)]  # but no more calls than this
    max_variation: Annotated[float, Field(gt=0)]  # standard deviation over mean above which a row is not valid
    starts: bool = (
        False  # measure a cold and a warm start first, each in a process of its own, with caches of their own
    )
    rounds: Annotated[int, Field(ge=1, le=100)] = 1  # processes, each of which does all of the above

    @property
    def processes(self) -> int:
        """How many processes it takes to measure a cell."""
        return self.rounds + 2 * self.starts

    @model_validator(mode="after")
    def _samples_are_not_capped(self) -> Measure:
        if self.samples > self.max_samples:
            raise ValueError(
                f"measure.samples={self.samples}: more than measure.max_samples={self.max_samples} would be taken; "
                f"set measure.max_samples to {self.samples} or more"
            )
        return self


class Cell(Frozen):
    """What is measured. Its id says what was asked; where it ran is in the result's ``env_id``."""

    # option names by group where the cell was composed, for messages and rows
    choices: Annotated[Mapping[str, str], Descriptive()] = {}
    # what composing found that no value tells: a plan and a row repeat it, and no file of a cell has it
    notes: Annotated[tuple[str, ...], Descriptive(), Field(exclude=True)] = ()
    recipe: Recipe
    workload: Workload
    measure: Measure
    quality: Quality = NOTHING
    runtime: Runtime = CURRENT

    def __hash__(self) -> int:
        return hash(self.id)

    @cached_property
    def id(self) -> str:
        """First 12 hex digits of the SHA-256 of what was asked; no path, time, host name or machine fact in it."""
        return record_digest(record_identity(self))

    @property
    def sites(self) -> tuple[Site, ...]:
        """What steps see of each stage of the pipeline; one, unless the model is a cascade."""
        recipe, stages = self.recipe, self.recipe.model.stages
        cascade = stages if len(stages) > 1 else ()
        return tuple(
            Site(model=model, hardware=recipe.hardware, workload=self.workload, code_id=recipe.code_id, cascade=cascade)
            for model in stages
        )
