"""What diffusers' caches can work with, told from classes, so that a plan needs no torch.

Classes of which nothing is known are let through here and looked at when the cache is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffopt.models import classes

if TYPE_CHECKING:
    from diffopt.schema.step import Site
    from diffopt.schema.workload import Workload


def denoiser_predicts_twice_a_step(site: Site) -> bool:
    """Whether each step needs a second prediction, without the prompt. Unknown without a workload: then it may."""
    model, asked = site.model, site.workload
    if model.embedded_guidance or asked is None:
        return not model.embedded_guidance
    return asked.guidance > 1 and (not model.guides_by_negative_prompt or bool(asked.negative_prompt))


def iterations_for_cache(workload: Workload) -> int:
    """Steps that are really run: from a picture, diffusers leaves out the first share of them."""
    if workload.strength is None:
        return workload.steps
    return workload.steps - int(max(workload.steps - workload.steps * workload.strength, 0))


def too_few_steps_to_cache(site: Site, computed: int) -> tuple[str, ...]:
    """Why a cache that computes ``computed`` steps at the beginning and the end could skip nothing."""
    ran = None if site.workload is None else iterations_for_cache(site.workload)
    if ran is None or ran > computed:
        return ()
    return (f"the workload runs {ran} steps, and it computes {computed} in any case, so nothing would be skipped",)


def cache_step_problems(
    site: Site, *, context: bool = False, time: bool = False, step: bool = False, one_state: bool = False
) -> tuple[str, ...]:
    """Reasons why a cache cannot work on this model, known from its classes.

    Args:
        context: it keeps the calls of a step apart by the context that the pipeline names.
        time: it reads the pipeline's ``current_timestep``.
        step: it reads the step and its sigma in the context.
        one_state: it keeps one state, so that two calls per step would mix.
    """
    model = site.model
    known = classes.denoiser_class_record(model.denoiser_class)
    if known.caches.enabled is False:
        return (f"{model.denoiser_class} has no enable_cache; diffusers' caches are for some of its transformers",)
    name = _pipeline_class(site)
    calls = classes.pipeline_class_record(name).denoiser
    if calls is None:
        return ()
    two = denoiser_predicts_twice_a_step(site) and known.guides_apart
    reasons = {
        f"{name} names no cache context, by which this cache keeps the calls of a step apart": context
        and not calls.context,
        f"{name} does not tell the current timestep, which this cache reads": time and not calls.time,
        f"{name} does not tell its cache the step and the sigma, which this cache reads": step and not calls.step,
        f"with guidance above 1 {name} calls the denoiser twice per step, and this cache would give the one call what "
        f"it kept of the other": one_state and two,
    }
    return tuple(reason for reason, holds in reasons.items() if holds)


def _pipeline_class(site: Site) -> str:
    """diffusers' class for what is asked; a later stage of a cascade, or no workload: the customary task."""
    asked = site.workload.task if site.workload is not None else site.model.task
    return str(getattr(site.model.pipelines, asked) or getattr(site.model.pipelines, site.model.task))
