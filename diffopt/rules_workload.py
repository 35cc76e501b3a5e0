"""What is asked of a model that it cannot do."""

from __future__ import annotations

from collections.abc import Iterator

from diffopt.recipe import Model
from diffopt.rules_case import Case, Problem

EPSILON = 1e-6  # for 5 * (1 - 0.8), which floating point makes a little less than 1
IMG2IMG_EVIDENCE = "diffusers 0.42, get_timesteps of the img2img pipelines of FLUX.1, SD3, Qwen-Image and Z-Image"


def unsuited_workload(case: Case) -> Iterator[Problem]:
    """The task, the pictures, the words or the later stages of the workload are not for this model."""
    model, workload = case.cell.recipe.model, case.cell.workload
    if workload.task not in model.pipelines.tasks:
        can = " or ".join(f"workload={task}" for task in model.pipelines.tasks)
        fact = f"model {model.name} has no pipeline for {workload.task}"
        yield Problem(fact, (f"model={model.name}", f"workload.task={workload.task}"), f"choose {can}")
    elif workload.task == "img2img" and model.denoiser == "transformer":
        yield from _ignored_picture(case)
    if workload.negative_prompt and not any(map(_reads_negative_prompt, model.stages, _guidances(case))):
        fact = "its guidance is embedded, or not above 1, so that no negative prompt is read"
        yield Problem(fact, (f"model={model.name}", "workload.negative_prompt"), "leave the negative prompt empty")
    for stage in model.cascade:
        if stage.task != "upscale":
            fact = f"a later stage of a cascade scales pictures up, but {stage.name} is for {stage.task}"
            yield Problem(fact, ("model.cascade",), "name models with the task upscale")


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
