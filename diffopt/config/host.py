"""What a plan for the CPU says of the machine that it is made on."""

from __future__ import annotations

from collections.abc import Iterator

from diffopt.machine.hardware import GIB, host_memory_bytes
from diffopt.recipe.cell import Cell
from diffopt.recipe.rules.estimate import estimate_memory_of_cell
from diffopt.steps.foreign import PluginFails


def note_on_memory_of_host(cell: Cell) -> Iterator[str]:
    """What ``hardware=cpu`` leaves open: whose memory it is. A run has this machine's."""
    declared, here = cell.recipe.hardware, host_memory_bytes()
    try:
        needed = estimate_memory_of_cell(cell)
    except PluginFails:  # which its plan says
        return
    if declared.device == "cpu" and declared.memory_gib is None and needed is not None and needed.total > here:
        yield f"hardware=cpu: it needs about {needed}, and this machine has {here / GIB:.1f}"
