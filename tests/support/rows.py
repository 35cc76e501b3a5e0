"""Cells and rows for tests, made from the shipped configs."""

from __future__ import annotations

from functools import cache
from typing import Any

from diffopt.config.resolve import cell_from_config, compose_requests
from diffopt.machine.environment import Cpu, Environment
from diffopt.machine.nvml import Device
from diffopt.recipe.cell import Cell
from diffopt.results.result import Result

ENVIRONMENT = Environment(
    versions={"python": "3.11.0", "torch": "2.13.0"},
    device=Device(kind="cpu", name="A processor", memory_bytes=2**34, gpu=None),
    cpu=Cpu(model="A processor", cores=4, threads=4),
    git=None,
)


@cache
def a_cell(*overrides: str) -> Cell:
    return compose_requests(["hardware=cpu", "measure=quick", *overrides])[0].cell


def seeded(seed: int) -> Cell:
    """Cells that differ in their seed; a thousand times faster than composing each."""
    data = a_cell().model_dump(mode="json")
    data["workload"]["seed"] = seed
    return cell_from_config(data)


def a_result(cell: Cell | None = None, **changes: Any) -> Result:
    cell = cell or a_cell()
    values = {
        "cell_id": cell.id,
        "env_id": ENVIRONMENT.id,
        "recipe_id": cell.recipe.id,
        "status": "ok",
        "phase": "measure",
        "reason": None,
        "valid": True,
        "choices": {"compile": "none"},
        "cell": cell.model_dump(mode="json", exclude={"choices"}),
        "environment": ENVIRONMENT,
    }
    return Result(**{**values, **changes})


def stubbed(mode: str) -> Cell:
    """A cell that stub_worker.py ends in the way ``mode`` says."""
    data = a_cell().model_dump(mode="json")
    data["workload"]["negative_prompt"] = mode
    return cell_from_config(data)
