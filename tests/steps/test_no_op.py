"""Every registered step, patched to do nothing, fails its cell: the row is an error that names the step."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from support.option_steps import CONF, step, values
from support.tiny import tiny

from diffopt.config.resolve import compose_requests
from diffopt.errors import NoEffect
from diffopt.models import calls
from diffopt.pipeline import load
from diffopt.pipeline.build import build_pipelines, verify_steps
from diffopt.pipeline.failure import describe_pipeline_error, status_of_pipeline_error
from diffopt.recipe.cell import Cell
from diffopt.recipe.plan import Plan
from diffopt.recipe.recipe import STEP_GROUPS
from diffopt.schema.step import Step, registered_step_kinds

STEPS = [(group, kind) for group in STEP_GROUPS for kind in registered_step_kinds(group) if kind != "none"]
# Of the options of a kind the one that asks for something that the pipeline has not by itself.
TELLING = {("precision", "dtype"): "bf16", ("scheduler", "sampler"): "euler"}


@functools.cache
def drawn(model: str) -> tuple[Cell, Any]:
    """A cell for a GPU, and its pipeline, on the CPU and called once: no step that does nothing changes it."""
    (request,) = compose_requests([*tiny(model), "hardware=h100", "measure=quick", "workload.steps=2"])
    cell, dtype = request.cell, {"default": torch.float32}
    pipe = load.load_pipeline(cell.sites[0].model, cell.workload.task, device="cpu", dtype=dtype)
    calls.draw_pictures(calls.calls_of_models([pipe], cell.recipe.model.stages, cell.workload))
    return cell, pipe


def option(group: str, kind: str) -> Step:
    """The first shipped option of a kind, unless another is named above."""
    names = [path.stem for path in sorted((CONF / group).glob("*.yaml"))]
    first = next(name for name in names if values(group, name)["kind"] == kind)
    return step(group, TELLING.get((group, kind), first))


@pytest.mark.parametrize(("group", "kind"), STEPS)
def test_a_step_that_does_nothing_fails_its_cell_by_name(group: str, kind: str, monkeypatch) -> None:
    cell, pipe = drawn("flux_dev" if group == "cache" else "sd15")
    chosen = option(group, kind)
    monkeypatch.setattr(load, "load_pipeline", lambda *args, **kwargs: pipe)
    monkeypatch.setattr(type(chosen), "load_kwargs", lambda self, site: {})
    monkeypatch.setattr(type(chosen), "apply", lambda self, pipe, site: None)
    plan = Plan(cell=cell, steps=((group, chosen),), problems=(), notes=())
    with pytest.raises(NoEffect) as caught:
        verify_steps(plan, build_pipelines(plan))
    assert status_of_pipeline_error(caught.value) == "error"
    assert describe_pipeline_error(caught.value).startswith(f"verifying {group} ({kind}): no effect: ")
    assert group in str(caught.value), "also where a pipeline is optimized without a cell"


def test_every_group_has_a_step_that_can_do_nothing() -> None:
    assert {group for group, _ in STEPS} == set(STEP_GROUPS)
