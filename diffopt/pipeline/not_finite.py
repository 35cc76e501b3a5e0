"""Where the values of a pipeline are first not finite, and since which of its steps: found by building it again.

Imported by workers only, since it needs torch.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

from diffopt.models import calls
from diffopt.models.calls import Stage
from diffopt.pipeline.build import build_pipelines
from diffopt.pipeline.failure import describe_pipeline_error
from diffopt.pipeline.wrapping import replaced_method
from diffopt.recipe.options import shipped_step
from diffopt.recipe.planned import Plan
from diffopt.schema.step import Order

ALWAYS = (Order.PLACE, Order.OFFLOAD)  # where the weights are: without it, a model may not fit or takes hours
WIDEST = "fp32"  # the precision that is taken where not even that is chosen


class _NotFinite(Exception):
    """Ends a call where its values are not finite."""


def where_not_finite(stages: Sequence[Stage]) -> str | None:
    """Call the stages once, no further than until values are not finite: where that is; None: they are all finite."""

    def end(where: str) -> None:
        raise _NotFinite(where)

    try:
        with _watching(stages, end):
            calls.draw_pictures(stages)
    except _NotFinite as found:
        return str(found)
    return None


@contextmanager
def noting_not_finite(stages: Sequence[Stage]) -> Iterator[list[str]]:
    """Where values are not finite while this lasts, in the order found; calls are slower, and else as they are."""
    found: list[str] = []
    with _watching(stages, found.append):
        yield found


def since_which_step(plan: Plan) -> str:
    """After which step of the plan the values are first not finite, in words. Its own pipelines should be gone by now.

    By bisection: what one step spoils is taken to stay so after the next ones. The steps that say where the weights are
    belong to each try.
    """
    try:
        return _bisected(plan)
    except Exception as error:  # the row is there, and not valid for what was seen; this would only explain it
        return f"since which step cannot be told: {describe_pipeline_error(error)}"


def _bisected(plan: Plan) -> str:
    finite, spoiled, tried = 0, len(plan.steps), False
    while spoiled - finite > 1:
        middle = (finite + spoiled) // 2
        if _is_finite_with(plan, middle):
            finite = middle
        else:
            spoiled, tried = middle, True
    if finite == 0 and not _is_finite_with(plan, 0):
        return "they are so before any step: with the model's own weights in float32"
    if not tried and _is_finite_with(plan, spoiled):
        return "the same pipeline built again has finite values, so no step can be named"
    before = " ".join(plan.choice(group) for group, _ in plan.steps[:finite]) or f"precision={WIDEST}"
    return f"they are so since {plan.choice(plan.steps[spoiled - 1][0])}, and finite with {before}"


def _is_finite_with(plan: Plan, count: int) -> bool:
    """Whether the values are finite where the first ``count`` steps alone are applied; without any, in float32."""
    steps = [pair for index, pair in enumerate(plan.steps) if index < count or pair[1].order in ALWAYS]
    if not any(step.order is Order.LOAD for _, step in steps) and (widest := shipped_step("precision", WIDEST)):
        steps.insert(0, ("precision", widest))
    torch._dynamo.reset()
    pipes = build_pipelines(replace(plan, steps=tuple(steps)))
    where = where_not_finite(calls.calls_of_models(pipes, plan.cell.recipe.model.stages, plan.cell.workload))
    del pipes
    free_memory()
    return where is None


def free_memory() -> None:
    """Give back what pipelines held that nobody has any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _watching(stages: Sequence[Stage], tell: Callable[[str], None]) -> Iterator[None]:
    """Tell where the latents of a denoising step, or what the VAE decodes of them, are not finite."""
    with ExitStack() as stack:
        for stage in stages:
            of = "" if len(stages) == 1 else f" of {stage.name}"
            step = _looking_at_values("from denoising step {done}" + of + " on", tell)
            stack.enter_context(replaced_method(stage.pipe.scheduler, "step", step))
            if stage.model.vae is not None:
                decode = _looking_at_values("after decoding" + of, tell)
                stack.enter_context(replaced_method(getattr(stage.pipe, stage.model.vae), "decode", decode))
        yield


def _looking_at_values(where: str, tell: Callable[[str], None]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A wrapper that looks at what is returned first; ``done`` in ``where`` is how often it was called."""

    def wrap(inner: Callable[..., Any]) -> Callable[..., Any]:
        done = 0

        @functools.wraps(inner)  # pipelines read the signature of `step` to learn which arguments it takes
        def checked(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            result = inner(*args, **kwargs)
            done += 1
            if not bool(torch.isfinite(result[0]).all()):
                tell(where.format(done=done))
            return result

        return checked

    return wrap
