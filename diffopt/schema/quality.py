"""How the pictures of a cell are looked at: which are drawn for it, and what its user accepts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from diffopt.schema.record import Descriptive, Frozen

Tier = Literal["lossless", "high", "preview"]  # what a user accepts


class Quality(Frozen):
    """Which pictures are drawn of a cell and of its reference, to be compared one by one.

    Each prompt is drawn with each seed, in the cell's size, steps and batches, after the samples.
    """

    prompts: tuple[str, ...] = ()  # none: nothing is compared
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**62)], ...] = ()
    require: Annotated[Tier | None, Descriptive()] = None  # a row that is worse is rejected

    @property
    def pictures(self) -> tuple[tuple[str, int], ...]:
        """Prompt and seed of each picture, in the order in which they are drawn; none where nothing is compared."""
        return tuple((prompt, seed) for prompt in self.prompts for seed in self.seeds)

    @model_validator(mode="after")
    def _has_pictures_or_nothing(self) -> Quality:
        if bool(self.prompts) != bool(self.seeds):
            raise ValueError("quality.prompts and quality.seeds go together: choose quality=none to compare nothing")
        if self.require is not None and not self.prompts:
            raise ValueError(f"quality.require={self.require}: nothing is compared; choose quality=fast or full")
        return self


NOTHING = Quality()
PACKAGES = ("torchmetrics>=1.9", "flip-evaluator>=1.7")  # of the extra [quality]
