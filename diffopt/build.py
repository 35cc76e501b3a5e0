"""From a plan to an optimized pipeline, and the proof of every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diffopt.plan import Plan
from diffopt.result import Stage, StepEffect
from diffopt.step import Step

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def build(plan: Plan, *, on_stage: Callable[[Stage], None] = lambda stage: None) -> DiffusionPipeline:
    """Load the pipeline of ``plan`` and apply its steps, in their order.

    Args:
        on_stage: called with ``load`` and ``optimize`` as they begin.

    Raises:
        Refusal: the model cannot be had here, or a step cannot work on this pipeline.
    """
    from diffopt.loading import load_pipeline

    cell = plan.cell
    on_stage("load")
    pipe = load_pipeline(
        cell.recipe.model, cell.workload.task, device=cell.recipe.hardware.device, **_load_kwargs(plan)
    )
    on_stage("optimize")
    for group, step in plan.steps:
        with _naming(f"applying {group} ({step.kind})"):
            step.apply(pipe, cell.site)
    return pipe


def verify(plan: Plan, pipe: DiffusionPipeline) -> tuple[StepEffect, ...]:
    """The proof of each step on the finished pipeline, after warm-up. Raises NoEffect at the first that has none."""
    return tuple(_proof(plan, pipe, group, step) for group, step in plan.steps)


def _proof(plan: Plan, pipe: DiffusionPipeline, group: str, step: Step) -> StepEffect:
    with _naming(f"verifying {group} ({step.kind})"):
        effect = step.verify(pipe, plan.cell.site)
    return StepEffect(group=group, kind=step.kind, summary=effect.summary, numbers=dict(effect.numbers))


def _load_kwargs(plan: Plan) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for group, step in plan.steps:
        wanted = step.load_kwargs(plan.cell.site)
        twice = merged.keys() & wanted.keys()
        if twice:
            raise ValueError(f"{group} ({step.kind}) sets {', '.join(sorted(twice))}, which another step sets already")
        merged |= wanted
    return merged


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Say in an exception which step it comes from, without changing its type."""
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise
