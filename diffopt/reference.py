"""What makes two rows of studies comparable, and the cell that an optimized one is compared with. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffopt.recipe import STEP_GROUPS, Hardware, Model
from diffopt.result import Result
from diffopt.runtime import CURRENT
from diffopt.step import descriptive
from diffopt.workload import PICTURES

DESCRIBED = {"model": descriptive(Model), "hardware": descriptive(Hardware)}  # keys that decide nothing
_SHARED = ("precision", "memory", "scheduler", "lora")  # groups of which a reference has an option too


def reference_of(result: Result, results: Sequence[Result]) -> Result | None:
    """The cell of the same study that an optimized one is compared with, or None.

    Valid, same model, workload, sampler and hardware, measured alike in the same environment by the same interpreter,
    customary dtype (the VAE as the model needs it), no other optimization. What only describes a model or a GPU may
    differ.
    """
    for other in results:
        recipe, mine = other.cell["recipe"], result.cell["recipe"]
        if (
            other.status == "ok"
            and other.valid
            and other.env_id == result.env_id
            and runtime_of(other.cell) == runtime_of(result.cell)
            and other.cell["measure"] == result.cell["measure"]
            and asked_workload(other.cell["workload"]) == asked_workload(result.cell["workload"])
            and _deciding(recipe) == _deciding(mine)
            and recipe["precision"].get("dtype") == mine["model"]["dtype"]
            and not recipe["precision"].get("tf32")
            and recipe["precision"].get("vae") == "auto"
            and recipe["memory"]["kind"] == "resident"
            and all(recipe[group]["kind"] == "none" for group in STEP_GROUPS if group not in _SHARED)
        ):
            return other
    return None


def runtime_of(cell: Mapping[str, Any]) -> str:
    """The name of the interpreter that ran a row's cell."""
    return str(cell["runtime"]["name"] if "runtime" in cell else CURRENT.name)  # rows of before there was a choice


def asked_workload(workload: Mapping[str, Any]) -> dict[str, Any]:
    """A row's workload without the names of its pictures, which count by their content."""
    pictures = {name: value["content"] for name in PICTURES if (value := workload.get(name))}
    return {**workload, **pictures}


def _deciding(recipe: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """What a cell shares with its reference."""
    told = DESCRIBED | {group: frozenset[str]() for group in ("scheduler", "lora")}
    return tuple({k: v for k, v in recipe[part].items() if k not in told[part]} for part in told)
