"""What rules read, a cell with the names that the user wrote, and what they find, a problem. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from diffopt.cell import Cell
from diffopt.components import Component
from diffopt.recipe import Hardware
from diffopt.step import Trait

PARTS = frozenset(get_args(Component))


@dataclass(frozen=True)
class Problem:
    """Why a cell cannot work: the fact, the keys that cause it, what to do instead, and where that is known from."""

    fact: str
    keys: tuple[str, ...]
    remedy: str
    evidence: str = ""

    @property
    def text(self) -> str:
        source = f" [{self.evidence}]" if self.evidence else ""
        return f"{' x '.join(self.keys)}: {self.fact}; {self.remedy}{source}"


@dataclass(frozen=True)
class Case:
    """A cell with the names of the options that led to it, which is what messages speak of."""

    cell: Cell
    choices: Mapping[str, str]

    @property
    def hardware(self) -> Hardware:
        return self.cell.recipe.hardware

    @property
    def place(self) -> str:
        return f"hardware={self.hardware.name}"

    @property
    def dtype(self) -> str:
        """What the denoiser computes in, as the traits of the precision step tell it."""
        traits = self.cell.recipe.precision.traits
        if Trait.HALF_PRECISION_BF16 in traits:
            return "bfloat16"
        return "float16" if Trait.HALF_PRECISION_FP16 in traits else "float32"

    def key(self, group: str) -> str:
        return f"{group}={self.choices.get(group, getattr(self.cell.recipe, group).kind)}"

    @property
    def compiled(self) -> frozenset[str]:
        """The words for what is compiled; empty where nothing is."""
        return frozenset(getattr(self.cell.recipe.compile, "components", ()))

    def groups(self, trait: Trait) -> list[str]:
        """Groups of the steps that have this trait on this hardware."""
        return [group for group, step in self.cell.recipe.steps if trait in step.traits_on(self.hardware)]

    def holders(self, trait: Trait) -> list[str]:
        """Keys of the steps that have this trait on this hardware."""
        return [self.key(group) for group in self.groups(trait)]

    def touched(self, group: str) -> frozenset[str]:
        """The parts that the step of a group touches: those it names, of a cache the denoiser, else all."""
        step = getattr(self.cell.recipe, group)
        if Trait.CACHES in step.traits:
            return frozenset({"denoiser"})
        named = {"vae" if word == "vae_decode" else word for word in getattr(step, "components", None) or PARTS}
        return frozenset(named) if named <= PARTS else PARTS  # a LoRA's file has names of its own

    def meet(self, one: str, other: str) -> bool:
        """Whether the steps of two groups touch a part in common."""
        return not self.touched(one).isdisjoint(self.touched(other))
