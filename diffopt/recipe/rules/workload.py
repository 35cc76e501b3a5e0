"""What is asked of a model that it cannot do."""

from __future__ import annotations

from collections.abc import Iterator

from diffopt.models.classes import denoiser_class_record
from diffopt.models.families import family_of_pipeline
from diffopt.models.sampling import TRAIN_TIMESTEPS
from diffopt.recipe.planned import Problem
from diffopt.recipe.rules.case import Case
from diffopt.schema.model import TASKS, Model
from diffopt.schema.words import value_in_words
from diffopt.schema.workload import ASKED_FOR, NEEDS, PICTURES, Workload

RESIZING = ("resample", "resize_mode")  # how a picture comes to its size
EPSILON = 1e-6  # for 5 * (1 - 0.8), which floating point makes a little less than 1
STEPS_EVIDENCE = "diffusers 0.42, set_timesteps of DDIM, DDPM, PNDM, Euler and others"
IMG2IMG_EVIDENCE = "diffusers 0.42, get_timesteps of the img2img pipelines of FLUX.1, SD3, Qwen-Image and Z-Image"


def rule_on_workload(case: Case) -> Iterator[Problem]:
    """The task, the sizes, the pictures, the words or the later stages of the workload are not for this model."""
    yield from _odd_sizes(case)
    yield from _sizes_without_positions(case)
    yield from _bare_embeddings(case)
    yield from _more_steps_than_trained(case)
    yield from _not_taken(case)
    model, workload = case.cell.recipe.model, case.cell.workload
    if workload.task not in model.pipelines.tasks:
        can = " or ".join(f"workload={task}" for task in model.pipelines.tasks)
        fact = f"model {model.name} has no pipeline for {workload.task}"
        yield Problem(fact, (f"model={model.name}", f"workload.task={workload.task}"), f"choose {can}")
    elif workload.strength is not None and "strength" in NEEDS[workload.task]:
        yield from _no_step(case)
        if workload.task == "img2img" and model.denoiser == "transformer":
            yield from _ignored_picture(case)
    if workload.negative_prompt and not any(map(_reads_negative_prompt, model.stages, _guidances(case))):
        fact = "its guidance is embedded, or not above 1, so that no negative prompt is read"
        yield Problem(fact, (f"model={model.name}", "workload.negative_prompt"), "leave the negative prompt empty")
    if len(workload.later_stages) != len(model.cascade):
        names = ", ".join(stage.name for stage in model.cascade) or "none"
        fact = f"model {model.name} has {len(model.cascade)} stages after its first one ({names})"
        given = f"workload.later_stages with {len(workload.later_stages)} stages"
        yield Problem(fact, (given,), "workload.later_stages=null fills them in")
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
            fact = f"model {model.name} draws in blocks of {block} pixels"
            yield Problem(fact, (f"workload.{side}={size}",), f"use {near}")
    step, frames = model.frame_step, workload.frames
    if step is not None and frames is not None and "frames" in NEEDS[workload.task] and (frames - 1) % step:
        low = (frames - 1) // step * step + 1
        fact = f"model {model.name} makes videos of a multiple of {step} frames and one more"
        yield Problem(fact, (f"workload.frames={frames}",), f"use {low} or {low + step}")


def _sizes_without_positions(case: Case) -> Iterator[Problem]:
    """A size beyond a table of positions, where the denoiser would fail in its first step."""
    model, workload = case.cell.recipe.model, case.cell.workload
    for stage, size in zip(model.stages, model.sizes(workload.height, workload.width), strict=True):
        limit = stage.size_limit
        if limit is None:
            continue
        for side, asked in zip(("height", "width"), size, strict=True):
            most = getattr(limit, side)
            if asked <= most and (asked == most or not limit.exact):
                continue
            words = f"for another {side} than" if limit.exact else f"beyond a {side} of"
            fact = f"model {stage.name} has no positions {words} {most} pixels"
            remedy = f"use {most}{'' if limit.exact else ' or less'}"
            if stage is not model:
                remedy = "make the first stage's picture smaller"
            yield Problem(fact, (f"workload.{side}={getattr(workload, side)}", f"model={stage.name}"), remedy)


def _bare_embeddings(case: Case) -> Iterator[Problem]:
    """Random embeddings in place of the text encoders, for a class that asks for more than those of the prompts."""
    for stage in case.cell.recipe.model.stages:
        task = case.cell.workload.task if stage is case.cell.recipe.model else stage.task
        pipeline = str(getattr(stage.pipelines, task))
        family = family_of_pipeline(pipeline)
        if stage.embeddings is not None and family is not None and not family.embeddings:
            fact = f"{pipeline} asks for more than the embeddings of the prompts, such as pooled ones or masks"
            remedy = "set model.embeddings=null, and its text encoders make them"
            yield Problem(fact, ("model.embeddings", f"model={stage.name}"), remedy)


def _more_steps_than_trained(case: Case) -> Iterator[Problem]:
    """Steps for which a schedule of diffusion has no timesteps: samplers raise, or draw each step at the same one."""
    workload = case.cell.workload
    steps = [workload.steps, *(stage.steps for stage in workload.later_stages)]
    for stage, asked in zip(case.cell.recipe.model.stages, steps, strict=False):
        most = stage.train_timesteps or TRAIN_TIMESTEPS
        if denoiser_class_record(stage.denoiser_class).process == "diffusion" and asked > most:
            fact = f"model {stage.name} was trained on {most} timesteps, and a sampler has no more steps than those"
            keys = (f"workload.steps={asked}", f"model={stage.name}")
            yield Problem(fact, keys, f"use {most - 1} or less", STEPS_EVIDENCE)


def _not_taken(case: Case) -> Iterator[Problem]:
    """What is given and the task does not ask for, so that it would change nothing."""
    model, workload = case.cell.recipe.model, case.cell.workload
    for key in ASKED_FOR:
        given = getattr(workload, key)
        if given is None or key in NEEDS[workload.task]:
            continue
        takers = [task for task in TASKS if key in NEEDS[task]]
        able = [f"workload={task}" for task in takers if task in model.pipelines.tasks]
        remedy = f"choose {' or '.join(able)}, or leave it out (null)"
        if not able:
            remedy = f"leave it out (null): model {model.name} has no pipeline for {' or '.join(takers)}"
        shown = given.path if key in PICTURES else value_in_words(given)
        yield Problem(f"workload={workload.task} takes no {key}", (f"workload.{key}={shown}",), remedy)
    for key in RESIZING if not set(PICTURES) & set(NEEDS[workload.task]) else ():
        given, usual = getattr(workload, key), Workload.model_fields[key].default
        if given != usual:
            fact = f"workload={workload.task} is given no picture that could be resized"
            yield Problem(fact, (f"workload.{key}={given}",), f"leave it out ({value_in_words(usual)})")


def _no_step(case: Case) -> Iterator[Problem]:
    """The share of the steps that is run comes to none: pipelines of transformers round it up, those of UNets down."""
    steps, strength = case.cell.workload.steps, case.cell.workload.strength
    if strength is None:
        return
    up = case.cell.recipe.model.denoiser == "transformer"
    if (steps - int(steps - steps * strength) if up else int(steps * strength)) < 1:
        fact = "that share of the steps, which is run on the picture, is no step at all"
        keys = (f"workload.steps={steps}", f"workload.strength={strength}")
        yield Problem(fact, keys, f"use a strength of {1 / steps:.2g} or more, or more steps")


def _reads_negative_prompt(model: Model, guidance: float) -> bool:
    return guidance > 1 and not model.embedded_guidance and model.embeddings is None


def _guidances(case: Case) -> list[float]:
    """The guidance of each stage, as far as it is given."""
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
