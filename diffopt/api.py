"""diffopt from Python: the same recipes, plans and refusals as on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffopt.cell import Cell
from diffopt.errors import NoEffect, Refusal, UsageError
from diffopt.plan import Plan, make_plan
from diffopt.resolve import Request, requests
from diffopt.runtime import CURRENT
from diffopt.step import Order, Site

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from diffopt.result import Result


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
        config_dirs: folders with options and recipes beside the shipped ones; they may be anybody's, so the code
            and the files elsewhere that they name are refused unless ``overrides`` names them too.
        trust_config_dirs: likewise your own, which may name both.

    Returns:
        The pipeline with every step applied. Compiling happens at its first call, so what only a run can prove is not
        proven yet; :func:`run` does.

    Raises:
        UsageError: the recipe or an override is wrong.
        Refusal: the recipe cannot work on its hardware, or a step cannot work on this pipeline; all reasons at once.
    """
    from diffopt.build import build

    plan = _workable(_request(recipe, overrides, config_dirs, trust_config_dirs))
    model = plan.cell.recipe.model
    if model.cascade:
        stages = ", ".join(f"model={stage.name}" for stage in model.stages)
        raise Refusal(f"model={model.name} is {len(model.stages)} pipelines in a row; load each by itself: {stages}")
    (pipe,) = build(plan)
    return pipe


def optimize(
    pipe: DiffusionPipeline,
    recipe: str | Path = "baseline",
    *,
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str | Path] = (),
    trust_config_dirs: Sequence[str | Path] = (),
) -> DiffusionPipeline:
    """Apply a recipe's steps to a pipeline that is loaded already; returns it, changed in place.

    What only loading can do is not done here: the pipeline must already have the precision of the recipe.

    Raises:
        UsageError: the recipe or an override is wrong.
        Refusal: the recipe cannot work on its hardware or on this pipeline, or the pipeline was loaded otherwise.
    """
    request = _request(recipe, overrides, config_dirs, trust_config_dirs)
    plan = _workable(request)
    wanted = request.cell.recipe
    site = Site(model=wanted.model, hardware=wanted.hardware, workload=None, code_id=wanted.code_id)
    for group, step in plan.steps:
        if step.order is not Order.LOAD:
            continue
        try:
            step.verify(pipe, site)
        except NoEffect as error:
            raise Refusal(
                f"{group}={request.choices[group]} is done when the pipeline is loaded, and this one was loaded "
                f"otherwise ({error}). Load it that way, choose the {group} that it has, or use diffopt.load."
            ) from error
    for _, step in plan.steps:
        step.apply(pipe, site)
    return pipe


def run(cell: Cell, *, study: str | Path | None = None, choices: Mapping[str, str] | None = None) -> Result:
    """Measure one cell in a process of its own and keep the row.

    Args:
        study: name or directory of the study that keeps it; a fresh one without.
        choices: option names by group, for the row and its messages.

    Returns:
        The row, whatever its status; nothing is raised for a cell that fails.
    """
    from diffopt.runner import run_one

    return run_one(cell, study=study, choices=choices)


def _request(
    recipe: str | Path,
    overrides: Sequence[str],
    config_dirs: Sequence[str | Path],
    trust_config_dirs: Sequence[str | Path],
) -> Request:
    folders, trusted = ([Path(folder) for folder in given] for given in (config_dirs, trust_config_dirs))
    lock = Path(recipe) if isinstance(recipe, Path) or recipe.endswith((".yaml", ".yml")) else None
    chosen = list(overrides) if lock else [f"recipe={recipe}", *overrides]
    (request,) = requests(chosen, lock=lock, folders=folders, trusted=trusted)
    if request.cell.runtime != CURRENT:
        raise UsageError(
            f"runtime={request.cell.runtime.name} is another Python, and the pipeline would be made in this one. "
            f"Choose runtime={CURRENT.name}, or use diffopt.run, whose workers it starts."
        )
    return request


def _workable(request: Request) -> Plan:
    plan = make_plan(request.cell, request.choices)
    if plan.problems:
        raise Refusal("This recipe cannot work: " + "; ".join(plan.reasons))
    return plan
