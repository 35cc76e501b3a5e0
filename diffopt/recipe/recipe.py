"""The recipe: everything that decides a pipeline. Frozen data; reads no file, probes nothing, imports no torch."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import diffopt.steps  # noqa: F401
from diffopt.schema.hardware import Hardware
from diffopt.schema.model import Model
from diffopt.schema.record import Frozen, record_digest, record_identity
from diffopt.schema.step import OneOf, Step


class Recipe(Frozen):
    """A model, a device, and one step per optimization group. Field order is the order of the groups everywhere."""

    model: Model
    hardware: Hardware
    precision: Annotated[Step, OneOf("precision")]
    memory: Annotated[Step, OneOf("memory")]
    lora: Annotated[Step, OneOf("lora")]
    fuse: Annotated[Step, OneOf("fuse")]
    quant: Annotated[Step, OneOf("quant")]
    attention: Annotated[Step, OneOf("attention")]
    layout: Annotated[Step, OneOf("layout")]
    vae: Annotated[Step, OneOf("vae")]
    scheduler: Annotated[Step, OneOf("scheduler")]
    compile: Annotated[Step, OneOf("compile")]
    cache: Annotated[Step, OneOf("cache")]

    @property
    def steps(self) -> tuple[tuple[str, Step], ...]:
        """``(group, step)`` of everything that is done to the pipeline, in the order it is done."""
        chosen = [(group, getattr(self, group)) for group in STEP_GROUPS]
        return tuple(sorted((pair for pair in chosen if pair[1].kind != "none"), key=lambda pair: pair[1].order))

    @cached_property
    def id(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical YAML, without what only describes."""
        return record_digest(record_identity(self))

    @cached_property
    def code_id(self) -> str:
        """Likewise without the sampler: no module sees it, so code that is compiled for one serves the others."""
        return record_digest({name: part for name, part in record_identity(self).items() if name != "scheduler"})


STEP_GROUPS = tuple(name for name in Recipe.model_fields if name not in ("model", "hardware"))


# Groups in the order a reader meets them: what is run, on what, how it is optimized, how it is measured and kept.
PROTOCOLS = ("measure", "quality")
GROUP_ORDER = ("recipe", "model", "workload", "hardware", *STEP_GROUPS, *PROTOCOLS, "runtime", "launch", "sweep")
