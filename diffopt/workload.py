"""What is asked of a pipeline."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from diffopt.step import Frozen


class Workload(Frozen):
    """One call of the pipeline. Sizes are in pixels; ``None`` in the YAML is the model's customary value, filled in
    before this object is made, so that a cell's id says what really ran."""

    task: Literal["txt2img"]
    prompts: Annotated[tuple[str, ...], Field(min_length=1)]  # picture i of a batch draws prompts[i % len(prompts)]
    negative_prompt: str
    batch_size: Annotated[int, Field(ge=1)]  # pictures per call
    height: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=1)]  # num_inference_steps; a multistep sampler may call the denoiser once more
    guidance: Annotated[float, Field(ge=0)]  # classifier-free guidance scale; above 1 the denoiser's batch doubles
    # picture i is drawn with seed + i, from a CPU generator on every device
    seed: Annotated[int, Field(ge=0, lt=2**62)]

    @property
    def batch_prompts(self) -> list[str]:
        """The prompts of one batch, repeated or cut to ``batch_size``."""
        return [self.prompts[i % len(self.prompts)] for i in range(self.batch_size)]
