"""What rules read, a cell with the words that the user wrote. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import get_args

from diffopt.recipe.cell import Cell
from diffopt.recipe.labels import option_of_label
from diffopt.schema.hardware import Hardware
from diffopt.schema.step import Trait
from diffopt.steps.components import Component, attributes

PARTS = frozenset(get_args(Component))


@dataclass(frozen=True)
class Case:
    """A cell, spoken of by the options that led to it."""

    cell: Cell

    @property
    def hardware(self) -> Hardware:
        return self.cell.recipe.hardware

    @property
    def place(self) -> str:
        return f"hardware={self.hardware.name}"

    @property
    def dtype(self) -> str:
        """What the denoiser computes in, and so what one says of the whole pipeline."""
        return self.cell.recipe.precision.dtype_of("denoiser", self.cell.sites[0])

    def dtypes(self, group: str) -> dict[str, frozenset[str]]:
        """The parts that the step of a group touches in any stage, by the dtype that they compute in."""
        precision, found = self.cell.recipe.precision, dict[str, set[str]]()
        for site, part in product(self.cell.sites, get_args(Component)):
            if part in self.touched(group) and attributes(site.model, part):
                found.setdefault(precision.dtype_of(part, site), set()).add(part)
        return {dtype: frozenset(parts) for dtype, parts in found.items()}

    def key(self, group: str) -> str:
        return f"{group}={option_of_label(self.cell.choices.get(group, getattr(self.cell.recipe, group).kind))}"

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
        named = frozenset(map(_part_of_word, getattr(step, "components", None) or PARTS))
        return named if named <= PARTS else PARTS  # a LoRA's file has names of its own

    def without(self, group: str, parts: frozenset[str], other: str) -> str:
        """A remedy: to leave out the words for ``parts``, where the group names others too, or ``other``."""
        every = getattr(getattr(self.cell.recipe, group), "components", ())
        named = [word for word in every if _part_of_word(word) in parts]
        return (
            other if len(named) == len(every) else f"leave {' and '.join(named)} out of {group}.components, or {other}"
        )

    def meet(self, one: str, other: str) -> bool:
        """Whether the steps of two groups touch a part in common."""
        return not self.touched(one).isdisjoint(self.touched(other))


def _part_of_word(word: str) -> str:
    """The part that a word in ``components`` stands for; of a VAE the decoder is compiled, by a word of its own."""
    return "vae" if word == "vae_decode" else word
