"""Whether a row was measured with the settings of a published benchmark: those of the sweep that has its name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from diffopt.recipe.cell import Cell
from diffopt.recipe.labels import option_of_label
from diffopt.recipe.recipe import STEP_GROUPS
from diffopt.results.result import Result
from diffopt.schema.words import flatten_to_dotted_keys, value_in_words

# What sets the speed of the stages. Prompts, pictures and seeds do not, and neither does how long one measures.
WORKLOAD = ("height", "width", "steps", "guidance", "strength", "frames", "later_stages")

Key = tuple[str, str, int, bool]  # model option, task, pictures per call, compiled or not


def published_sweep_cells(cells: Iterable[Cell]) -> dict[Key, Cell]:
    """The cells of a sweep, where :func:`settings_unlike_published` looks for them."""
    return {
        (cell.recipe.model.name, cell.workload.task, cell.workload.batch_size, cell.choices["compile"] != "none"): cell
        for cell in cells
    }


def settings_unlike_published(result: Result, sweep: Mapping[Key, Cell]) -> dict[str, str]:
    """The settings in which a row differs from the sweep's cell of the same model, task, batch size and compile or not.

    ``{"attention=vanilla": "auto"}`` says that the sweep has ``attention=auto``. A model that the sweep has not differs
    in its name, tiny weights in these. A batch size that it has not is compared with a cell of one picture.
    """
    recipe, workload = result.cell["recipe"], result.cell["workload"]
    model, task, compiled = recipe["model"]["name"], workload["task"], recipe["compile"]["kind"] != "none"
    if recipe["model"]["weights"] == "tiny":
        return {"model.weights=tiny": "full size"}
    asked = sweep.get((model, task, workload["batch_size"], compiled)) or sweep.get((model, task, 1, compiled))
    if asked is None:
        names = dict.fromkeys(name for name, its_task, _, _ in sweep if its_task == task)
        return {f"model={model}": " or ".join(names)}
    page = asked.model_dump(mode="json")
    changed = {key: value for group in STEP_GROUPS for key, value in _changed(group, result, page, asked.choices)}
    for key in WORKLOAD:
        if workload.get(key) != page["workload"][key] and key in workload:
            changed[f"workload.{key}={value_in_words(workload[key])}"] = value_in_words(page["workload"][key])
    return changed


def _changed(
    group: str, result: Result, page: Mapping[str, Any], choices: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """By the option where another one was chosen, else value by value. A field that either lacks came later."""
    mine, theirs = (
        dict(flatten_to_dotted_keys(cell["recipe"].get(group, {}), f"{group}.")) for cell in (result.cell, page)
    )
    differing = [key for key in theirs if key in mine and mine[key] != theirs[key]]
    # the page splits no decoding; where the sweep does, it is for the memory, and no figure is of decoding
    if not differing or (group == "vae" and mine.get("vae.kind") == "none"):
        return
    option = option_of_label(result.choices.get(group, mine[f"{group}.kind"]))
    if option != (asked := option_of_label(choices[group])):
        yield f"{group}={option}", asked
        return
    for key in differing:
        yield f"{key}={value_in_words(mine[key])}", value_in_words(theirs[key])
