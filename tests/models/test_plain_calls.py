"""What `diffopt run` draws is what a plain call of diffusers draws with the same arguments, and no others."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny import every_task
from support.tiny_families import cell, drawn, pipelines

from diffopt.models.pictures import open_picture
from diffopt.pipeline.build import build_pipelines
from diffopt.recipe.cell import Cell
from diffopt.recipe.plan import make_plan
from diffopt.schema.model import Model

OPTIONS = every_task()
FAST = ["sdxl", "wan21_t2v_1_3b"]
EVERY = [option if option in FAST else pytest.param(option, marks=pytest.mark.slow) for option in OPTIONS]
PICTURES = {"image": "image", "mask": "mask_image", "control": "image"}
NUMBERS = {"strength": "strength", "control_scale": "controlnet_conditioning_scale", "frames": "num_frames"}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def customary(model: Model, steps: int, guidance: float) -> dict[str, Any]:
    call = {key: value for key, value in model.call.model_dump().items() if value is not None}
    return {"num_inference_steps": steps, model.guidance_argument: guidance, **call}


def embeddings(model: Model, seed: int) -> dict[str, Any]:
    size = model.embeddings
    shape, noise = (2, size.tokens, size.width), torch.Generator().manual_seed(seed)
    prompt, negative = torch.randn(shape, generator=noise).chunk(2)
    return {"prompt_embeds": prompt, "negative_prompt_embeds": negative}


def first_call(pipe: Any, asked: Cell, **more: Any) -> dict[str, Any]:
    """What somebody would write who has read the class's documentation."""
    model, workload = asked.recipe.model, asked.workload
    arguments = customary(model, workload.steps, workload.guidance)
    accepted = inspect.signature(type(pipe).__call__).parameters
    if "height" in accepted:
        arguments |= {"height": workload.height, "width": workload.width}
    if "max_area" in accepted:
        arguments |= {"max_area": workload.height * workload.width, "_auto_resize": False}
    shrunk = (model.upscale_factor or 1) if workload.task == "upscale" else 1
    size = (workload.width // shrunk, workload.height // shrunk)
    for key, name in PICTURES.items():
        if (picture := getattr(workload, key)) is not None:
            arguments[name] = open_picture(picture, size, mode="L" if key == "mask" else "RGB")
    arguments |= {name: value for key, name in NUMBERS.items() if (value := getattr(workload, key)) is not None}
    noise = [torch.Generator().manual_seed(workload.seed + index) for index in range(workload.batch_size)]
    if model.embeddings is not None:
        arguments |= embeddings(model, workload.seed) | {"num_images_per_prompt": workload.batch_size}
    elif workload.batch_size == 1:
        arguments["prompt"] = workload.prompts[0]
    else:
        arguments["prompt"] = [workload.prompts[0]] * workload.batch_size
        if "image" in arguments and workload.task in ("img2img", "inpaint", "upscale", "img2video"):
            arguments["image"] = [arguments["image"]] * workload.batch_size
    return arguments | {"generator": noise[0] if workload.batch_size == 1 else noise} | more


def plain(pipes: list[Any], asked: Cell, **more: Any) -> np.ndarray:
    """The last stage's pictures, in [0, 1]."""
    last = len(pipes) - 1
    kinds = [{"output_type": "np" if index == last else "pt"} for index in range(len(pipes))]
    given = pipes[0](**first_call(pipes[0], asked, **more, **kinds[0]))[0]
    outputs = [given]
    for pipe, model, called, kind in zip(
        pipes[1:], asked.recipe.model.cascade, asked.workload.later_stages, kinds[1:], strict=True
    ):
        taken = outputs[0 if model.takes == "first" else -1][:1]
        words = embeddings(model, asked.workload.seed) if model.embeddings else {"prompt": asked.workload.prompts[0]}
        height, width = (side * model.upscale_factor for side in taken.shape[-2:])
        accepted = inspect.signature(type(pipe).__call__).parameters
        sizes = {"height": height, "width": width} if "height" in accepted else {}
        if model.vae is not None:  # such pipelines take tensors from 0 to 1, those in pixel space from -1 to 1
            taken = (taken / 2 + 0.5).clamp(0, 1)
        arguments = customary(model, called.steps, called.guidance) | words | sizes | kind
        outputs.append(pipe(image=taken, generator=torch.Generator().manual_seed(asked.workload.seed), **arguments)[0])
    return np.asarray(outputs[-1])


def quick(option: str, *words: str) -> Cell:
    """With few steps; flow matching leaves none of two out, and so begins a picture at pure noise."""
    return cell(option, f"workload.steps={5 if option.endswith('img2img') else 2}", *words)


def apart(option: str, *words: str, **more: Any) -> float:
    """The largest difference of the cell's pictures from those of a plain call."""
    asked = quick(option, *words)
    ours = drawn(build_pipelines(make_plan(asked)), asked)
    theirs = plain(pipelines(asked), asked, **more)
    assert ours.shape == theirs.shape
    assert ours.std() > 0
    return float(np.abs(ours.astype(np.float64) - theirs).max())


@pytest.mark.parametrize("option", EVERY)
def test_nothing_typed_is_the_plain_call(option: str) -> None:
    assert apart(option) == 0


@pytest.mark.parametrize("option", EVERY)
def test_nothing_typed_is_the_plain_call_for_two_pictures_at_once(option: str) -> None:
    assert apart(option, "workload.batch_size=2") == 0


@pytest.mark.parametrize("option", EVERY)
def test_a_negative_prompt_is_the_plain_call_with_it(option: str) -> None:
    asked = quick(option, "workload.negative_prompt=blurred")
    if refused := make_plan(asked).reasons:
        assert any("no negative prompt is read" in reason for reason in refused)
        return
    if asked.recipe.model.embeddings is not None:
        pytest.skip("random embeddings stand for the prompts of the first stage")
    assert apart(option, "workload.negative_prompt=blurred", negative_prompt="blurred") == 0


@pytest.mark.parametrize("option", EVERY)
def test_a_prompt_and_a_size_of_ones_own_are_the_plain_call_with_them(option: str) -> None:
    """Twice as wide, where the model has places for that."""
    words = ("workload.prompt='two red squares'", f"workload.width={2 * quick(option).workload.width}")
    if refused := make_plan(quick(option, *words)).reasons:
        assert all("workload.width=" in reason for reason in refused)
        words = words[:1]
    assert apart(option, *words) == 0


@pytest.mark.parametrize("words", [(), ("workload.negative_prompt=blurred",)], ids=["none", "blurred"])
def test_a_negative_prompt_changes_the_picture_of_sdxl(words: tuple[str, ...]) -> None:
    asked = quick("sdxl", *words)
    (pipe,) = pipelines(asked)
    assert np.abs(drawn([pipe], asked) - plain([pipe], asked, negative_prompt="")).max() > 1e-3
