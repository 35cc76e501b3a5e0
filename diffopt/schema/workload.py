"""What is asked of a pipeline."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from diffopt.schema.model import Task
from diffopt.schema.record import Descriptive, Frozen

# What each task asks for beyond a prompt, by the names of the workload's fields.
NEEDS: dict[Task, tuple[str, ...]] = {
    "txt2img": (),
    "img2img": ("image", "strength"),
    "inpaint": ("image", "mask", "strength"),
    "controlnet": ("control", "control_scale"),
    "edit": ("image",),
    "upscale": ("image",),
    "txt2video": ("frames",),
    "img2video": ("image", "frames"),
}
ASKED_FOR = tuple(dict.fromkeys(need for needs in NEEDS.values() for need in needs))
PICTURES = ("image", "mask", "control")
# How pictures come to the size that a pipeline takes, by the words of diffusers' VaeImageProcessor and Pillow.
Resample = Literal["lanczos", "bicubic", "bilinear", "nearest"]
ResizeMode = Literal["default", "fill", "crop"]


class Picture(Frozen):
    """A picture that is given to a pipeline; it counts by its content, and is resized as the workload says."""

    path: Annotated[str, Descriptive()]  # a file, or the name of one that diffopt brings along (diffopt/models/inputs)
    content: str  # SHA-256 of the file


class LaterStage(Frozen):
    """How a later stage of a cascade is called."""

    steps: Annotated[int, Field(ge=1)]
    guidance: Annotated[float, Field(ge=0)]


class Workload(Frozen):
    """One call of the pipeline. Sizes are in pixels; ``None`` in the YAML is the model's customary value, filled in
    before this object is made, so that a cell's id says what really ran. What the task does not ask for is ``None``."""

    task: Task
    prompts: Annotated[tuple[str, ...], Field(min_length=1)]  # picture i of a batch draws prompts[i % len(prompts)]
    negative_prompt: str  # empty: not given to the pipeline
    batch_size: Annotated[int, Field(ge=1)]  # pictures per call; later stages of a cascade take the first one alone
    height: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=1)]  # num_inference_steps; a multistep sampler may call the denoiser once more
    guidance: Annotated[float, Field(ge=0)]  # guidance scale; above 1 the denoiser's batch doubles, unless embedded
    # picture i is drawn with seed + i, from a CPU generator on every device
    seed: Annotated[int, Field(ge=0, lt=2**62)]
    image: Picture | None = None
    mask: Picture | None = None  # white where something new is drawn
    control: Picture | None = None  # the control map
    strength: Annotated[float, Field(gt=0, le=1)] | None = None  # share of the steps that is run on the picture
    control_scale: Annotated[float, Field(ge=0)] | None = None  # controlnet_conditioning_scale
    frames: Annotated[int, Field(ge=1)] | None = None  # num_frames of a video
    later_stages: tuple[LaterStage, ...] = ()
    resample: Resample | None = None  # None: lanczos, of a mask nearest, which leaves its values as they are
    resize_mode: ResizeMode = "default"  # default: stretched to the size; fill, crop: in its own shape

    @property
    def batch_prompts(self) -> list[str]:
        """The prompts of one batch, repeated or cut to ``batch_size``."""
        return [self.prompts[i % len(self.prompts)] for i in range(self.batch_size)]
