"""What a command line asks for, resolved."""

from __future__ import annotations

from dataclasses import dataclass

from diffopt.recipe.cell import Cell
from diffopt.recipe.launch import Launch
from diffopt.schema.reference import AUTO, Reference


@dataclass(frozen=True)
class Request:
    """A cell, and where and how it is to run."""

    cell: Cell
    launch: Launch
    study: str | None
    reference: Reference = AUTO
