"""Calls of pipelines: each argument of the workload arrives, and what a class does not take is refused."""

from __future__ import annotations

from inspect import Parameter, Signature
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from support.rows import a_cell

from diffopt.errors import Refusal
from diffopt.models import calls


class Pipe:
    """Stands in for a pipeline: keeps what it is called with."""

    _execution_device = "cpu"

    def __init__(self, size: int = 8) -> None:
        self.calls: list[dict[str, Any]] = []
        self.size = size
        self.unet = SimpleNamespace(dtype=torch.float16)

    def _drawn(self, arguments: dict[str, Any]) -> tuple[Any]:
        self.calls.append(arguments)
        if arguments["output_type"] == "pt":
            return (torch.full((4, 3, self.size, self.size), float(self.size)),)
        return ([Image.new("RGB", (self.size, self.size))],)


def pipe_class(name: str, *taken: str) -> type[Pipe]:
    """A class whose calls take these arguments by name, beside those that every pipeline here takes."""
    common = ("num_inference_steps", "guidance_scale", "generator", "output_type")

    def call(self: Pipe, **arguments: Any) -> tuple[Any]:
        signature.bind(self, **arguments)  # as a function with this signature would, it refuses any other
        return self._drawn(arguments)

    parameters = [Parameter("self", Parameter.POSITIONAL_ONLY)]
    parameters += [Parameter(word, Parameter.KEYWORD_ONLY, default=None) for word in (*taken, *common)]
    signature = call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return type(name, (Pipe,), {"__call__": call})


TextToImage = pipe_class("TextToImage", "prompt", "negative_prompt", "height", "width")
ImageToImage = pipe_class("ImageToImage", "prompt", "negative_prompt", "image", "strength")
TextAndImage = pipe_class("TextAndImage", "prompt", "negative_prompt", "image", "noise_level")
Upscale = pipe_class(
    "Upscale", "prompt_embeds", "negative_prompt_embeds", "num_images_per_prompt", "height", "width", "image",
    "noise_level", "clean_caption",
)  # fmt: skip


def test_arguments_follow_the_workload() -> None:
    pipe = TextToImage()
    cell = a_cell("workload.batch_size=3", "workload.seed=5", "workload.steps=4", "workload.prompt=fox")
    (stage,) = calls.calls_of_models((pipe,), cell.recipe.model.stages, cell.workload)  # type: ignore[arg-type]
    for _ in range(2):
        calls.draw_pictures((stage,))
    first, second = pipe.calls
    assert first["prompt"] == ["fox"] * 3
    assert "negative_prompt" not in first  # none typed is none given; to SDXL an empty one is something else
    assert (first["height"], first["width"], first["num_inference_steps"]) == (64, 64, 4)
    for call in (first, second):
        assert [g.initial_seed() for g in call["generator"]] == [5, 6, 7]
    assert first["generator"][0] is not second["generator"][0]  # a generator that was used gives other noise
    assert all(g.device.type == "cpu" for g in first["generator"])
    assert stage.name == "denoise"


def test_a_negative_prompt_is_given_once_per_picture_of_the_batch() -> None:
    pipe = TextToImage()
    cell = a_cell("workload.batch_size=2", "workload.negative_prompt=ugly")
    calls.draw_pictures(calls.calls_of_models((pipe,), cell.recipe.model.stages, cell.workload))  # type: ignore[arg-type]
    assert pipe.calls[0]["negative_prompt"] == ["ugly"] * 2


def test_a_picture_is_given_in_the_size_asked_for_once_per_picture_of_the_batch() -> None:
    pipe = ImageToImage()
    cell = a_cell(
        "model=sd15", "model.weights=tiny", "workload=img2img", "workload.batch_size=2", "workload.strength=0.5"
    )
    calls.draw_pictures(calls.calls_of_models((pipe,), cell.recipe.model.stages, cell.workload))  # type: ignore[arg-type]
    (call,) = pipe.calls
    assert [picture.size for picture in call["image"]] == [(cell.workload.width, cell.workload.height)] * 2
    assert call["strength"] == 0.5


def test_what_the_class_does_not_take_is_refused() -> None:
    cell = a_cell("model=sd15", "model.weights=tiny", "workload=img2img")
    with pytest.raises(Refusal, match="TextToImage takes no image, strength"):
        calls.calls_of_models((TextToImage(),), cell.recipe.model.stages, cell.workload)  # type: ignore[arg-type]


def test_a_cascade_hands_its_pictures_on() -> None:
    cell = a_cell("model=deepfloyd_if", "model.weights=tiny", "workload.batch_size=4", "workload.seed=3")
    pipes = (Upscale(8), Upscale(32), TextAndImage(32))
    made = calls.calls_of_models(pipes, cell.recipe.model.stages, cell.workload)  # type: ignore[arg-type]
    assert [stage.name for stage in made] == [model.name for model in cell.recipe.model.stages]
    calls.draw_pictures(made)
    base, second, third = (pipe.calls[0] for pipe in pipes)
    assert (base["num_images_per_prompt"], second["num_images_per_prompt"]) == (4, 1)
    assert [g.initial_seed() for g in base["generator"]] == [3, 4, 5, 6]
    assert [g.initial_seed() for g in second["generator"]] == [3]
    assert torch.equal(base["prompt_embeds"], second["prompt_embeds"])  # the page gives both stages the same
    assert base["prompt_embeds"].dtype == torch.float16
    assert not torch.equal(base["prompt_embeds"], base["negative_prompt_embeds"])
    assert second["image"].shape == (1, 3, 8, 8)
    assert (second["height"], second["width"]) == (32, 32)
    assert third["image"].shape == (1, 3, 8, 8)  # as on the page: the first stage's picture, not the second's
    assert (base["output_type"], second["output_type"], third["output_type"]) == ("pt", "pt", "pil")


def test_what_a_pipeline_writes_into_its_prompts_is_gone_in_the_next_call() -> None:
    """As ZImagePipeline does, which puts the chat template around them in place."""

    class Writes(TextToImage):  # type: ignore[misc,valid-type]
        def _drawn(self, arguments: dict[str, Any]) -> tuple[Any]:
            prompt = arguments["prompt"]
            drawn: tuple[Any] = super()._drawn({**arguments, "prompt": list(prompt)})
            prompt[0] = f"<user>{prompt[0]}"
            return drawn

    pipe = Writes()
    made = calls.calls_of_models(
        (pipe,), a_cell("workload.prompt=fox").recipe.model.stages, a_cell("workload.prompt=fox").workload
    )  # type: ignore[arg-type]
    calls.draw_pictures(made)
    calls.draw_pictures(made)
    assert [call["prompt"] for call in pipe.calls] == [["fox"], ["fox"]]
