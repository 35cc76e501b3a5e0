"""What makes two rows of studies comparable, and the cell that an optimized one is compared with. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from diffopt.errors import UsageError
from diffopt.recipe.cell import Measure
from diffopt.recipe.explain import explain_invalid_recipe
from diffopt.recipe.recipe import STEP_GROUPS
from diffopt.results.result import Result
from diffopt.results.row_files import REMEDY, cell_of_row
from diffopt.schema.hardware import Hardware
from diffopt.schema.model import Model
from diffopt.schema.record import descriptive_fields, record_identity
from diffopt.schema.reference import AUTO, FIRST, PLAIN, Reference
from diffopt.schema.runtime import CURRENT
from diffopt.schema.workload import PICTURES

_DESCRIBED = {"model": descriptive_fields(Model), "hardware": descriptive_fields(Hardware)}  # keys that decide nothing
_SHARED = ("precision", "memory", "scheduler", "lora")  # groups of which a reference has an option too


def reference_row_of(result: Result, results: Sequence[Result], reference: Reference = AUTO) -> Result | None:
    """The row of the same study that an optimized one is compared with, the first that may be; or None.

    Valid, same model, workload and hardware, measured alike in the same environment by the same interpreter. A plain
    one has besides the same sampler and LoRA, the customary dtype (the VAE as the model needs it), and no other
    optimization. ``auto`` is a plain one or else the first. What only describes a model or a GPU may differ.
    """
    if reference.kind == "auto":
        return reference_row_of(result, results, PLAIN) or reference_row_of(result, results, FIRST)
    plain = reference.kind == "plain"
    may = (other for other in results if _is_measured_alike(other, result, plain) and _is(reference, other))
    return next(may, None)


def _is_measured_alike(other: Result, result: Result, plain: bool) -> bool:
    return (
        other.status == "ok"
        and other.valid
        and other.env_id == result.env_id
        and runtime_of_row(other.cell) == runtime_of_row(result.cell)
        and _measure(other.cell["measure"]) == _measure(result.cell["measure"])
        and _workload(other.cell["workload"]) == _workload(result.cell["workload"])
        and _deciding(other.cell["recipe"], plain) == _deciding(result.cell["recipe"], plain)
    )


def _is(reference: Reference, row: Result) -> bool:
    recipe = row.cell["recipe"]
    if reference.kind != "plain":
        return reference.may_be(row.choices, row.cell_id)
    return bool(
        recipe["precision"].get("dtype") == recipe["model"]["dtype"]
        and not recipe["precision"].get("tf32")
        and recipe["precision"].get("vae") == "auto"
        and recipe["memory"]["kind"] == "resident"
        and all(recipe[group]["kind"] == "none" for group in STEP_GROUPS if group not in _SHARED)
    )


def runtime_of_row(cell: Mapping[str, Any]) -> str:
    """The name of the interpreter that ran a row's cell."""
    return str(cell["runtime"]["name"] if "runtime" in cell else CURRENT.name)  # rows of before there was a choice


def asked_of_row(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What a row's cell asked for, as its id counts it, whichever diffopt wrote it; without the runtime.

    Raises UsageError when this diffopt has no such recipe any more.
    """
    try:
        read = cell_of_row(cell)
    except ValidationError as error:
        raise UsageError(
            f"A row has a recipe that this diffopt does not know: {explain_invalid_recipe(error)} {REMEDY}"
        ) from error
    return record_identity(read)


def _workload(workload: Mapping[str, Any]) -> dict[str, Any]:
    """A row's workload without the names of its pictures, which count by their content."""
    pictures = {name: value["content"] for name in PICTURES if (value := workload.get(name))}
    return {**workload, **pictures}


def _measure(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """How a row was measured, whichever diffopt wrote it."""
    added = {name: field.default for name, field in Measure.model_fields.items() if not field.is_required()}
    return {**added, **protocol}


def _deciding(recipe: Mapping[str, Any], plain: bool) -> tuple[dict[str, Any], ...]:
    """What a cell shares with its reference, a plain one or another."""
    told = _DESCRIBED | {group: frozenset[str]() for group in (("scheduler", "lora") if plain else ())}
    return tuple({k: v for k, v in recipe[part].items() if k not in told[part]} for part in told)
