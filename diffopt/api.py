"""diffopt from Python: the same recipes, plans and refusals as on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffopt.config.asked import Asked
from diffopt.errors import NoEffect, Refusal, UsageError
from diffopt.machine import hardware, packages
from diffopt.recipe.cell import Cell
from diffopt.recipe.planned import Plan
from diffopt.schema.step import Order, Site

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from diffopt.config.request import Request
    from diffopt.recipe.recipe import Recipe
    from diffopt.results.result import Result
    from diffopt.results.study import Study
    from diffopt.schema.model import Model


def load(
    recipe: str | Path = "baseline",
    *,
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str | Path] = (),
    trust_config_dirs: Sequence[str | Path] = (),
) -> DiffusionPipeline:
    """Load and optimize the pipeline of a recipe.

    Safe inside somebody else's Hydra application: no global state of Hydra's is touched.

    Args:
        recipe: the name of an overlay in ``conf/recipe``, or a file that ``diffopt show`` printed (a Path, or a
            string that ends in ``.yaml``).
        overrides: as on the command line, such as ``["model=sd15", "compile.fullgraph=false"]``.
        config_dirs: folders with options and recipes beside the shipped ones and those in ``./conf``; they may be
            anybody's, so the code and the files elsewhere that they name are refused unless ``overrides`` names them
            too.
        trust_config_dirs: likewise your own, which may name both.

    Returns:
        The pipeline with every step applied; its attribute ``diffopt`` is the recipe. Compiling happens at its first
        call, so what only a run can prove is not proven yet; :func:`run` does.

    Raises:
        UsageError: the recipe or an override is wrong.
        Refusal: the recipe cannot work on its hardware, or a step cannot work on this pipeline; all reasons at once.
    """
    from diffopt.pipeline.build import build_pipelines  # here for torch

    request = Asked.from_arguments(recipe, overrides, config_dirs, trust_config_dirs).request()
    _check_one_pipeline(request.cell.recipe.model)
    (pipe,) = build_pipelines(_workable(request))
    return _marked(pipe, request.cell.recipe)


def optimize(
    pipe: DiffusionPipeline,
    recipe: str | Path = "baseline",
    *,
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str | Path] = (),
    trust_config_dirs: Sequence[str | Path] = (),
) -> DiffusionPipeline:
    """Apply a recipe's steps to a pipeline that is loaded already; returns it, changed in place.

    Where neither the overrides nor the recipe choose a model, the facts are the pipeline's own; likewise its precision,
    which is then left as it is. Chosen ones must be those that the pipeline has. Where a step refuses the pipeline, the
    steps before it stay applied.

    Args:
        pipe: a pipeline of diffusers, however it was made.
        recipe: as for :func:`load`, like the next three.

    Returns:
        ``pipe``; its attribute ``diffopt`` is the recipe.

    Raises:
        UsageError: the recipe or an override is wrong, or the pipeline's configs do not tell what must be known.
        Refusal: the recipe cannot work on its hardware or on this pipeline, the pipeline is of another model or another
            precision than the chosen one, or it was optimized already.
    """
    from diffopt.pipeline.adopt import check_loaded_pipeline_is_model, precision_of_loaded_pipeline  # here for torch
    from diffopt.pipeline.build import apply_steps  # here for torch

    _check_plain(pipe)
    asked = Asked.from_arguments(recipe, overrides, config_dirs, trust_config_dirs)
    adopted, request = _adopted(pipe, asked)
    wanted, choices = request.cell.recipe, request.cell.choices
    _check_one_pipeline(wanted.model)
    if "model" not in adopted:
        check_loaded_pipeline_is_model(pipe, wanted.model)
    plan = _workable(request)
    site = Site(model=wanted.model, hardware=wanted.hardware, workload=None, code_id=wanted.code_id)
    steps = [(group, step) for group, step in plan.steps if group not in adopted]
    for group, step in steps:
        try:
            step.check_loaded(pipe, site)
        except NoEffect as error:
            raise Refusal(
                f"{group}={choices[group]} is chosen, and this pipeline was loaded as "
                f"precision={precision_of_loaded_pipeline(pipe)} ({error}). Load it with other dtypes, cast that part "
                f"with its `.to(…)`, or choose no {group}: what the pipeline has is then taken."
            ) from error
    apply_steps(pipe, steps, site)
    return _marked(pipe, wanted)


def compose(
    recipe: str | Path = "baseline",
    *,
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str | Path] = (),
    trust_config_dirs: Sequence[str | Path] = (),
    multirun: bool = False,
) -> list[Cell]:
    """The cells that a command line asks for, for :func:`plan` and :func:`run`. Imports no torch.

    Args:
        recipe: as for :func:`load`, like the next three.
        multirun: expand sweeps, as ``-m`` does: ``["compile=none,regional"]`` or ``["sweep=pytorch2"]``.

    Returns:
        Each distinct cell, in the order of the sweep; one without ``multirun``.

    Raises:
        UsageError: the recipe or an override is wrong.
    """
    asked = Asked.from_arguments(recipe, overrides, config_dirs, trust_config_dirs)
    return [request.cell for request in asked.requests(multirun=multirun)]


def plan(cell: Cell, *, deep: bool = False) -> Plan:
    """What would be done to the cell's pipeline, and every reason why it cannot work; ``print`` shows it.

    Needs no GPU and imports no torch, and raises nothing for a cell that is refused: ``problems`` and ``reasons`` say
    why.

    Args:
        deep: call the pipeline of ``model=local`` or ``model=hub`` once without weights too, in a process of its own.
    """
    from diffopt.run.dry_call import plan_cells  # here for start-up time

    return plan_cells([_checked(cell)], deep=deep)[0]


def run(cell: Cell, *, study: str | Path | Study | None = None, deep: bool = True) -> Result:
    """Measure one cell in a process of its own and keep the row.

    Args:
        cell: one of those that :func:`compose` gives.
        study: name or directory of the study that keeps it; a fresh one without. Where there is none yet, a cell
            that is refused before it could start makes none.
        deep: as for :func:`plan`, before anything is loaded.

    Returns:
        The row, whatever its status; nothing is raised for a cell that fails.
    """
    from diffopt.run.sweep import run_one  # here for start-up time

    return run_one(_checked(cell), study=study, deep=deep)


def _adopted(pipe: DiffusionPipeline, asked: Asked) -> tuple[set[str], Request]:
    """What is asked for, and the groups (model, precision) that nobody chose and that are what the pipeline has.

    Raises UsageError for a value that says which model is to be loaded.
    """
    from diffopt.pipeline import adopt  # here for torch

    composed, words, model = asked.composed(), list(asked.words), {}
    adopted = {"model", "precision"} - composed.chosen
    if "model" in adopted:
        if places := sorted(composed.typed & {f"model.{key}" for key in adopt.PLACES}):
            raise UsageError(f"{places[0]} says what to load, and the pipeline is loaded already: leave it out.")
        words.append("model=local")
        model["resolve_model"] = lambda data, base: adopt.facts_of_loaded_pipeline(pipe, data)
    if "precision" in adopted and "precision.dtype" not in composed.typed:
        words.append(f"precision={adopt.precision_of_loaded_pipeline(pipe)}")
    if any(key.startswith("precision.") for key in composed.typed):
        adopted -= {"precision"}  # what is set is to be done
    return adopted, replace(asked, words=tuple(words)).request(**model)


def _check_plain(pipe: Any) -> None:
    """Raises UsageError for what is no pipeline, and Refusal for one whose steps would come after later ones."""
    from diffusers import DiffusionPipeline

    if not isinstance(pipe, DiffusionPipeline):
        raise UsageError(f"optimize takes a pipeline of diffusers, but got a {type(pipe).__name__}.")
    before: Recipe | None = getattr(pipe, "diffopt", None)
    done = [f"{group} ({step.kind})" for group, step in before.steps if step.order > Order.PLACE] if before else []
    if done:
        raise Refusal(
            f"this pipeline was optimized already, {', '.join(done)}, and steps come in one order: load it anew, and "
            "give all choices to one call"
        )


def _check_one_pipeline(model: Model) -> None:
    if model.cascade:
        stages = ", ".join(f"model={stage.name}" for stage in model.stages)
        raise Refusal(f"model={model.name} is {len(model.stages)} pipelines in a row; take each by itself: {stages}")


def _workable(request: Request) -> Plan:
    """The plan. Raises Refusal where the recipe cannot work, or not on this machine."""
    found = plan(request.cell)
    if found.problems:
        raise Refusal("This recipe cannot work: " + "; ".join(found.reasons))
    absent = hardware.why_hardware_is_not_here(request.cell.recipe.hardware)
    absent = absent or packages.reason_of_lacking([step.requires() for _, step in found.steps])
    if absent is not None:
        raise Refusal(absent)
    return found


def _marked(pipe: Any, recipe: Recipe) -> DiffusionPipeline:
    """The pipeline, which says what was done to it."""
    pipe.diffopt = recipe
    return pipe  # type: ignore[no-any-return]


def _checked(cell: Cell) -> Cell:
    if not isinstance(cell, Cell):
        raise UsageError(f"one Cell is wanted, but got a {type(cell).__name__}; diffopt.compose gives a list of them.")
    return cell
