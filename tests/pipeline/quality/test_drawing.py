"""Every family in every task draws the pictures that it is judged by, each with its own prompt and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.tiny import every_task
from support.tiny_families import cell

from diffopt.models.calls import calls_of_models, draw_pictures
from diffopt.pipeline.build import build_pipelines
from diffopt.pipeline.meter import Meter
from diffopt.pipeline.quality.distances import distance_of_drawings
from diffopt.pipeline.quality.drawing import draw_for_comparison
from diffopt.recipe.cell import Cell
from diffopt.recipe.plan import make_plan
from diffopt.results.drawing import LATENTS
from diffopt.results.frames import lossless_pictures

FAST = ["tiny", "wan21_t2v_1_3b"]
EVERY = [option if option in FAST else pytest.param(option, marks=pytest.mark.slow) for option in every_task()]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def asked(option: str, batch: int) -> Cell:
    """Three pictures: of two prompts with two seeds in all, so that no batch of two or four is full."""
    steps = 5 if option.endswith("img2img") else 2
    words = (f"workload.steps={steps}", f"workload.batch_size={batch}", "quality=fast", "quality.seeds=[3]")
    return cell(option, *words, "quality.prompts=[a red square, two blue circles, a green star]")


def folder(tmp_path: Path, name: str) -> Path:
    found = tmp_path / name
    found.mkdir()
    return found


def pixels(folder: Path, name: str) -> np.ndarray[Any, Any]:
    frames = [np.asarray(Image.open(path).convert("RGB")) for path in lossless_pictures(folder, name)]
    return np.stack(frames)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("option", EVERY)
def test_pictures_that_are_compared_are_drawn_alike_twice(option: str, batch: int, tmp_path: Path) -> None:
    wanted = asked(option, batch)
    meter = Meter(build_pipelines(make_plan(wanted)), wanted)
    one, two = folder(tmp_path, "one"), folder(tmp_path, "two")
    names = draw_for_comparison(meter, wanted, one)
    assert [Path(name).stem for name in names] == ["0", "1", "2"]
    assert list(load_file(one / LATENTS)) == ["0", "1", "2"]
    found = distance_of_drawings(one, names, two, draw_for_comparison(meter, wanted, two))
    assert (found.equal, found.flip.worst, found.latents_error.worst) == (3, 0, 0)
    assert (found.flicker is None) == (wanted.workload.frames is None)


@pytest.mark.parametrize("option", EVERY)
def test_each_picture_is_that_of_its_prompt_and_its_seed(option: str, tmp_path: Path) -> None:
    wanted = asked(option, 1)
    pipes = build_pipelines(make_plan(wanted))
    names = draw_for_comparison(Meter(pipes, wanted), wanted, tmp_path)
    for index, (prompt, seed) in enumerate(wanted.quality.pictures):
        if wanted.recipe.model.embeddings is not None:  # which are drawn with the seed, and stand for the prompt
            seed += index
        alone = wanted.workload.model_copy(update={"prompts": (prompt,), "seed": seed})
        (drawn,) = draw_pictures(calls_of_models(pipes, wanted.recipe.model.stages, alone))
        frames = drawn if isinstance(drawn, list) else [drawn]
        assert np.array_equal(pixels(tmp_path, names[index]), np.stack([np.asarray(frame) for frame in frames]))


def test_other_prompts_and_seeds_are_other_pictures(tmp_path: Path) -> None:
    wanted = asked("tiny", 4)
    meter = Meter(build_pipelines(make_plan(wanted)), wanted)
    names = draw_for_comparison(meter, wanted, tmp_path)
    drawn = [pixels(tmp_path, name) for name in names]
    assert all(not np.array_equal(drawn[i], drawn[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    with Image.open(tmp_path / names[0]) as opened:
        assert opened.text == {"diffopt:cell_id": wanted.id, "diffopt:seed": "3"}


def test_pictures_of_a_batch_are_those_of_single_calls(tmp_path: Path) -> None:
    four, one = folder(tmp_path, "four"), folder(tmp_path, "one")
    names = []
    for place, batch in ((four, 4), (one, 1)):
        wanted = asked("tiny", batch)
        names.append(draw_for_comparison(Meter(build_pipelines(make_plan(wanted)), wanted), wanted, place))
    found = distance_of_drawings(four, names[0], one, names[1])
    assert found.latents_error.worst < 1e-5
