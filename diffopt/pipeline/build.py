"""From a plan to an optimized pipeline, and the proof of every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diffopt.machine.compile_cache import check_compile_caches_of_process
from diffopt.pipeline import load
from diffopt.recipe.planned import Plan
from diffopt.results.result import Phase, StepEffect
from diffopt.schema.step import Site, Step, Trait
from diffopt.steps.components import passes_over

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def build_pipelines(
    plan: Plan, *, on_phase: Callable[[Phase], None] = lambda phase: None
) -> tuple[DiffusionPipeline, ...]:
    """Load each stage's pipeline of ``plan`` and apply its steps, in their order; one stage, unless it is a cascade.

    Args:
        on_phase: called with ``load`` and ``optimize`` as they begin.

    Raises:
        Refusal: the model cannot be had here, or a step cannot work on this pipeline.
    """
    on_phase("load")
    pipes = load_pipelines(plan)
    on_phase("optimize")
    for pipe, site in zip(pipes, plan.cell.sites, strict=True):
        apply_steps(pipe, plan.steps, site)
    return pipes


def load_pipelines(plan: Plan) -> tuple[DiffusionPipeline, ...]:
    """The pipeline of each stage, nothing applied to it. Raises Refusal where the model cannot be had here."""
    pipes: list[DiffusionPipeline] = []
    for site in plan.cell.sites:
        task = plan.cell.workload.task if not pipes else site.model.task
        pipes.append(load.load_pipeline(site.model, task, device=_drawn_on(plan, site), **_load_kwargs(plan, site)))
    return tuple(pipes)


def apply_steps(pipe: DiffusionPipeline, steps: Iterable[tuple[str, Step]], site: Site) -> None:
    """Apply steps in the order given.

    Raises Refusal where one cannot work on this pipeline, or compiles and this process's caches are not this user's.
    """
    for group, step in steps:
        if Trait.TRACES in step.traits:
            check_compile_caches_of_process()
        with _naming(f"applying {group} ({step.kind})"):
            step.apply(pipe, site)


def _drawn_on(plan: Plan, site: Site) -> str:
    """Where random weights are made: on the device, unless they are to stay away from it and might not fit there."""
    return "cpu" if Trait.MOVES_WEIGHTS in plan.cell.recipe.memory.traits else site.hardware.device


def verify_steps(plan: Plan, pipes: Sequence[DiffusionPipeline]) -> tuple[StepEffect, ...]:
    """The proof of each step on each finished stage, after warm-up. Raises NoEffect at the first that has none."""
    sites = plan.cell.sites
    return tuple(
        proof_of_step(pipe, site, group, step, stage=site.model.name if len(sites) > 1 else None)
        for pipe, site in zip(pipes, sites, strict=True)
        for group, step in plan.steps
    )


def proof_of_step(pipe: DiffusionPipeline, site: Site, group: str, step: Step, stage: str | None) -> StepEffect:
    """The effect of one step on one stage. Raises NoEffect where it has none."""
    with _naming(f"verifying {group} ({step.kind})" + (f" of {stage}" if stage else "")):
        effect = passes_over(step, site) or step.verify(pipe, site)
    numbers = dict(effect.numbers)
    return StepEffect(group=group, kind=step.kind, stage=stage, summary=effect.summary, numbers=numbers)


def _load_kwargs(plan: Plan, site: Site) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for group, step in plan.steps:
        wanted = step.load_kwargs(site)
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
