"""How the pipeline of each task is called, and what it gives. Imported by workers only, since it needs torch.

Which arguments a task has is data (``workload.NEEDS``), which ones a model customarily takes too (``Model.call``). What
a pipeline class does not accept is refused here, never dropped.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL.Image import Image

from diffopt.errors import Refusal
from diffopt.models.pictures import open_picture
from diffopt.schema.model import Embeddings, Model, Task
from diffopt.schema.workload import NEEDS, PICTURES, Workload

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Output = Image | list[Image]  # a picture, or the frames of a video


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline, ready to be called: what stays the same from call to call is made once."""

    name: str
    pipe: Any
    model: Model
    seeds: tuple[int, ...]  # of the pictures that it draws
    arguments: dict[str, Any]
    final: bool  # whether its pictures come out; those of other stages stay tensors on the device

    def __call__(self, given: torch.Tensor | None = None) -> Any:
        """Draw; ``given`` (batch, 3, height, width), from -1 to 1, is what another stage drew."""
        # lists are copied: ZImagePipeline writes its chat template into the prompts that it is given
        arguments = {key: list(value) if isinstance(value, list) else value for key, value in self.arguments.items()}
        arguments["generator"] = [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds]
        if given is not None:
            arguments |= self._scaled_up(given[: len(self.seeds)])
        drawn = self.pipe(**arguments)[0]
        # diffusers' pipelines with a VAE give and take tensors from 0 to 1, those in pixel space from -1 to 1
        return drawn if self.final or self.model.vae is None else drawn * 2 - 1

    def _scaled_up(self, pictures: torch.Tensor) -> dict[str, Any]:
        factor, accepted = self.model.upscale_factor or 1, _accepted(self.pipe)
        if self.model.vae is not None:
            pictures = (pictures / 2 + 0.5).clamp(0, 1)
        sizes = {"height": pictures.shape[-2] * factor, "width": pictures.shape[-1] * factor}
        return {"image": pictures, **{name: size for name, size in sizes.items() if name in accepted}}


def calls_of_models(
    pipes: Sequence[DiffusionPipeline], models: Sequence[Model], workload: Workload
) -> tuple[Stage, ...]:
    """The stages of a workload on their pipelines, in the order they run.

    Raises Refusal where a pipeline's class does not accept what it is to be called with.
    """
    made = []
    for index, (pipe, model) in enumerate(zip(pipes, models, strict=True)):
        if index == 0:
            task, batch, steps, guidance = workload.task, workload.batch_size, workload.steps, workload.guidance
        else:  # later stages scale up the first picture of the batch alone
            call = workload.later_stages[index - 1]
            task, batch, steps, guidance = model.task, 1, call.steps, call.guidance
        arguments = {
            "num_inference_steps": steps,
            model.guidance_argument: guidance,
            "output_type": "pil" if index == len(models) - 1 else "pt",
            **_prompts(pipe, model, workload, batch),
            **_customary(model),
        }
        if index == 0:
            arguments |= _task_arguments(pipe, model, workload)
        seeds = tuple(range(workload.seed, workload.seed + batch))
        _check_accepted(pipe, task, {*arguments, "generator", *(["image"] if index else [])})
        made.append(
            Stage(
                name=model.name if len(models) > 1 else "denoise",
                pipe=pipe,
                model=model,
                seeds=seeds,
                arguments=arguments,
                final=index == len(models) - 1,
            )
        )
    return tuple(made)


def stages_of_pictures(made: Sequence[Stage], prompts: Sequence[str], seeds: Sequence[int]) -> tuple[Stage, ...]:
    """The same stages with other prompts and seeds, one of each for every picture of the first stage's batch.

    Later stages of a cascade draw the first one alone. Random embeddings that stand for prompts are the first seed's.
    """
    found = []
    for stage in made:
        count, model = len(stage.seeds), stage.model
        changed: dict[str, Any]
        if model.embeddings is not None:
            first, second = _embeddings(model, model.embeddings, stage.pipe, seeds[0])
            changed = {"prompt_embeds": first, "negative_prompt_embeds": second}
        else:
            changed = {"prompt": list(prompts[:count])}
        found.append(replace(stage, seeds=tuple(seeds[:count]), arguments=stage.arguments | changed))
    return tuple(found)


def draw_pictures(made: Sequence[Stage]) -> list[Output]:
    """One call through all stages: pictures, or videos as lists of frames, on the host."""
    outputs: list[Any] = []
    for stage in made:
        taken = None if not outputs else outputs[0] if stage.model.takes == "first" else outputs[-1]
        outputs.append(stage(taken))
    return list(outputs[-1])


def _prompts(pipe: Any, model: Model, workload: Workload, batch: int) -> dict[str, Any]:
    """The prompts as text, or random embeddings where the model runs without its text encoder."""
    accepted = _accepted(pipe)
    if model.embeddings is not None:
        first, second = _embeddings(model, model.embeddings, pipe, workload.seed)
        pictures = {"num_images_per_prompt": batch}
        return {"prompt_embeds": first, "negative_prompt_embeds": second, **pictures}
    found: dict[str, Any] = {"prompt": workload.batch_prompts[:batch]}
    # None typed is none given. An empty one is something else: SDXL guides away from zeros where it is given none,
    # Kandinsky 5 from words of its own, and Qwen-Image does not guide.
    if workload.negative_prompt and "negative_prompt" in accepted and not model.embedded_guidance:
        found["negative_prompt"] = [workload.negative_prompt] * batch
    return found


def _embeddings(model: Model, size: Embeddings, pipe: Any, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the prompt and the negative prompt, each (1, tokens, width), where and in what the denoiser computes.

    Drawn with the first picture's seed, and the same for the whole batch: they stand for one prompt.
    """
    denoiser = getattr(pipe, model.denoiser)
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randn((2, size.tokens, size.width), generator=generator).to(pipe._execution_device, denoiser.dtype)
    return drawn[:1], drawn[1:]


def _customary(model: Model) -> dict[str, Any]:
    return {name: value for name, value in model.call.model_dump().items() if value is not None}


def _task_arguments(pipe: Any, model: Model, workload: Workload) -> dict[str, Any]:
    """Size, pictures and settings of the workload's task."""
    needs, accepted = NEEDS[workload.task], _accepted(pipe)
    size = (workload.width, workload.height)
    found: dict[str, Any] = {}
    if workload.task == "upscale":
        factor = model.upscale_factor or 1
        given = (workload.width // factor, workload.height // factor)
    else:
        given = size
    # image-to-image classes of diffusers take the size from the picture
    if "height" in accepted or not {"image", "control"} & set(needs):
        found |= {"height": workload.height, "width": workload.width}
    if "max_area" in accepted:  # FLUX.1 Kontext scales any size to about one megapixel, unless it is told another area
        found |= {"max_area": workload.height * workload.width, "_auto_resize": False}
    names = {
        "image": "image",
        "mask": "mask_image",
        "control": "control_image" if "control_image" in accepted else "image",
        "strength": "strength",
        "control_scale": "controlnet_conditioning_scale",
        "frames": "num_frames",
    }
    for need in needs:
        value = getattr(workload, need)
        if need in PICTURES:
            value = _given_picture(workload, need, given)
        if need == "image" and model.embeddings is None and workload.task != "edit":
            # One for each prompt. diffusers repeats masks, control maps, and what goes with num_images_per_prompt. An
            # edit's several pictures would be several references for each output.
            value = [value] * workload.batch_size
        found[names[need]] = value
    return found


def _given_picture(workload: Workload, need: str, size: tuple[int, int]) -> Image:
    mode: Literal["L", "RGB"] = "L" if need == "mask" else "RGB"
    picture, resample = getattr(workload, need), workload.resample
    return open_picture(picture, size, mode, resample=resample, resize_mode=workload.resize_mode)


def _check_accepted(pipe: Any, task: Task, arguments: set[str]) -> None:
    if unknown := sorted(arguments - _accepted(pipe)):
        raise Refusal(f"workload.task={task}: {type(pipe).__name__} takes no {', '.join(unknown)}")


def _accepted(pipe: Any) -> frozenset[str]:
    return frozenset(inspect.signature(type(pipe).__call__).parameters)
