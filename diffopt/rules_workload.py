"""What is asked of a model that it cannot do."""

from __future__ import annotations

import math
from collections.abc import Iterator

from diffopt.labels import text
from diffopt.recipe import TASKS, Model
from diffopt.rules_case import Case, Problem
from diffopt.workload import NEEDS, PICTURES

EPSILON = 1e-6  # for 5 * (1 - 0.8), which floating point makes a little less than 1
IMG2IMG_EVIDENCE = "diffusers 0.42, get_timesteps of the img2img pipelines of FLUX.1, SD3, Qwen-Image and Z-Image"


def unsuited_workload(case: Case) -> Iterator[Problem]:
    """The task, the sizes, the pictures, the words or the later stages of the workload are not for this model."""
    yield from _odd_sizes(case)
    yield from _not_taken(case)
    model, workload = case.cell.recipe.model, case.cell.workload
    if workload.task not in model.pipelines.tasks:
        can = " or ".join(f"workload={task}" for task in model.pipelines.tasks)
        fact = f"model {model.name} has no pipeline for {workload.task}"
        yield Problem(fact, (f"model={model.name}", f"workload.task={workload.task}"), f"choose {can}")
    elif workload.strength is not None and "strength" in NEEDS[workload.task]:
        none = list(_no_step(case))
        yield from none
        if not none and workload.task == "img2img" and model.denoiser == "transformer":
            yield from _ignored_picture(case)
    if workload.negative_prompt and not any(map(_reads_negative_prompt, model.stages, _guidances(case))):
        fact = "its guidance is embedded, or not above 1, so that no negative prompt is read"
        yield Problem(fact, (f"model={model.name}", "workload.negative_prompt"), "leave the negative prompt empty")
    for stage in model.cascade:
        if stage.task != "upscale":
            fact = f"a later stage of a cascade scales pictures up, but {stage.name} is for {stage.task}"
            yield Problem(fact, ("model.cascade",), "name models with the task upscale")


def _odd_sizes(case: Case) -> Iterator[Problem]:
    """A height, a width or a number of frames that the VAE cannot make."""
    model, workload = case.cell.recipe.model, case.cell.workload
    for side in ("height", "width"):
        size, block = getattr(workload, side), model.size_multiple
        if size % block:
            low = size // block * block
            near = " or ".join(str(each) for each in (low, low + block) if each)
            fact = f"the VAE of model {model.name} works in blocks of {block} pixels"
            yield Problem(fact, (f"workload.{side}={size}",), f"use {near}")
    step, frames = model.frame_step, workload.frames
    if step is not None and frames is not None and (frames - 1) % step:
        low = (frames - 1) // step * step + 1
        fact = f"model {model.name} makes videos of a multiple of {step} frames and one more"
        yield Problem(fact, (f"workload.frames={frames}",), f"use {low} or {low + step}")


def _not_taken(case: Case) -> Iterator[Problem]:
    """What is given and the task does not ask for, so that it would change nothing."""
    model, workload = case.cell.recipe.model, case.cell.workload
    for key in dict.fromkeys(need for needs in NEEDS.values() for need in needs):
        given = getattr(workload, key)
        if given is None or key in NEEDS[workload.task]:
            continue
        takers = [task for task in TASKS if key in NEEDS[task]]
        able = [f"workload={task}" for task in takers if task in model.pipelines.tasks]
        remedy = f"choose {' or '.join(able)}, or leave it out"
        if not able:
            remedy = f"{', '.join(takers)} would, but model {model.name} can do none of them, so leave it out"
        shown = given.path if key in PICTURES else text(given)
        yield Problem(f"workload={workload.task} takes no {key}", (f"workload.{key}={shown}",), remedy)


def _no_step(case: Case) -> Iterator[Problem]:
    """The share of the steps that is run comes to none; diffusers' pipelines run the whole part."""
    steps, strength = case.cell.workload.steps, case.cell.workload.strength
    assert strength is not None
    least = math.ceil(1 / strength)
    if strength < 1 and steps < least:
        fact = "that share of the steps, which is run on the picture, is no step at all"
        keys = (f"workload.steps={steps}", f"workload.strength={strength}")
        yield Problem(fact, keys, f"use workload.steps={least} or more, or a higher strength")


def _reads_negative_prompt(model: Model, guidance: float) -> bool:
    return guidance > 1 and not model.embedded_guidance and model.embeddings is None


def _guidances(case: Case) -> list[float]:
    """The guidance of each stage."""
    workload = case.cell.workload
    return [workload.guidance, *(stage.guidance for stage in workload.later_stages)]


def _ignored_picture(case: Case) -> Iterator[Problem]:
    """Flow matching begins at pure noise: a strength that leaves out no whole step never looks at the picture."""
    steps, strength = case.cell.workload.steps, case.cell.workload.strength
    if strength is not None and steps * (1 - strength) < 1 - EPSILON:
        fact = f"with {steps} steps a strength of {strength} begins at the first one, which is pure noise"
        keys = ("workload.strength", f"model={case.cell.recipe.model.name}")
        remedy = f"take more steps, or a strength of {1 - 1 / steps:.2g} or less, or the picture has no effect"
        yield Problem(fact, keys, remedy, IMG2IMG_EVIDENCE)
