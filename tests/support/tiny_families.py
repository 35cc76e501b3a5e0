"""The tiny random pipelines of the model options, loaded as `diffopt run` does, and what they draw as numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from support.tiny import tiny

from diffopt.config.resolve import compose_requests
from diffopt.models import calls
from diffopt.pipeline.load import load_pipeline
from diffopt.recipe.cell import Cell
from diffopt.schema.step import Step

# one of each denoiser class, with other VAEs and tasks among them
FAMILIES = [
    "sd15_controlnet",
    "sdxl",
    "deepfloyd_if",
    "flux_dev",
    "flux2_klein",
    "sd35_medium",
    "sana_1600m",
    "pixart_sigma",
    "qwen_image",
    "z_image",
    "wan21_t2v_1_3b",
    "ltx_video",
    "cogvideox_5b",
    "hunyuan_video",
]


def cell(option: str, *words: str) -> Cell:
    """What ``diffopt run model=OPTION …`` asks for on the CPU."""
    (request,) = compose_requests([*tiny(option), "hardware=cpu", "measure=quick", *words])
    return request.cell


def pipelines(asked: Cell, dtype: torch.dtype = torch.float32) -> list[Any]:
    """One pipeline per stage, the same weights in each call."""
    tasks = [asked.workload.task, *(model.task for model in asked.recipe.model.cascade)]
    return [
        load_pipeline(site.model, task, device="cpu", dtype={"default": dtype})
        for site, task in zip(asked.sites, tasks, strict=True)
    ]


def apply(pipes: Sequence[Any], asked: Cell, *steps: Step) -> None:
    """Apply in the order of a plan, to every stage; asserts that the plan has nothing against it."""
    for pipe, site in zip(pipes, asked.sites, strict=True):
        for step in sorted(steps, key=lambda one: one.order):
            assert not step.problems(site)
            step.apply(pipe, site)


def verify(pipes: Sequence[Any], asked: Cell, step: Step) -> list[Any]:
    """The effect on each stage."""
    return [step.verify(pipe, site) for pipe, site in zip(pipes, asked.sites, strict=True)]


def drawn(pipes: Sequence[Any], asked: Cell) -> np.ndarray:
    """What the last stage draws, in [0, 1]: (pictures, height, width, 3), for videos with frames before the height."""
    stages = calls.calls_of_models(pipes, asked.recipe.model.stages, asked.workload)
    last = dataclasses.replace(stages[-1], arguments={**stages[-1].arguments, "output_type": "np"})
    return np.stack([np.asarray(output) for output in calls.draw_pictures([*stages[:-1], last])])


def error(picture: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference of two pictures."""
    return float(np.abs(picture.astype(np.float64) - reference).max())
