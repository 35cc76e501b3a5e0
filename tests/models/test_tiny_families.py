"""Every family with tiny weights in each of its tasks, by the calls that `diffopt run` makes.

What it is asked for decides what comes out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import every_task, tiny

from diffopt.config.resolve import compose_requests
from diffopt.models import calls
from diffopt.models.pictures import SHIPPED
from diffopt.pipeline.build import build_pipelines
from diffopt.recipe.plan import make_plan
from diffopt.schema.workload import NEEDS, PICTURES

torch.set_num_threads(1)
pytestmark = pytest.mark.slow


def frames(outputs: list[Any]) -> np.ndarray:
    """All pictures, or all frames of all videos, as floats."""
    pictures = [frame for output in outputs for frame in (output if isinstance(output, list) else [output])]
    return np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures])


class Drawn:
    """One option's pipelines, and what they draw for a workload."""

    def __init__(self, option: str) -> None:
        self.option = option
        request = self.request()
        self.cell = request.cell
        self.pipes = build_pipelines(make_plan(request.cell))
        for pipe in self.pipes:
            pipe.set_progress_bar_config(disable=True)
        self.plain = self()

    def request(self, *words: str) -> Any:
        (request,) = compose_requests([*tiny(self.option), "hardware=cpu", "measure=quick", *words])
        return request

    def __call__(self, *words: str) -> np.ndarray:
        return frames(
            calls.draw_pictures(
                calls.calls_of_models(
                    self.pipes, self.request(*words).cell.recipe.model.stages, self.request(*words).cell.workload
                )
            )
        )


@pytest.fixture(scope="module", params=every_task())
def drawn(request: pytest.FixtureRequest) -> Drawn:
    return Drawn(request.param)


def test_the_same_seed_gives_the_same_picture_and_another_another(drawn: Drawn) -> None:
    assert np.isfinite(drawn.plain).all()
    assert drawn.plain.std() > 1
    assert np.array_equal(drawn(), drawn.plain)
    assert differs(drawn("workload.seed=1"), drawn.plain)


def test_the_prompt_changes_the_picture(drawn: Drawn) -> None:
    if all(stage.embeddings is not None for stage in drawn.cell.recipe.model.stages):
        pytest.skip("random embeddings stand for the prompt")
    assert differs(drawn("workload.prompt=a_green_fish_on_a_plate"), drawn.plain)


def test_the_pictures_given_change_the_picture(drawn: Drawn, tmp_path: Path) -> None:
    needed = [need for need in NEEDS[drawn.cell.workload.task] if need in PICTURES]
    if not needed:
        pytest.skip("takes none")
    for name in needed:
        shipped = {"image": "scene", "mask": "mask", "control": "edges"}[name]
        with Image.open(SHIPPED / f"{shipped}.png") as picture:
            picture.convert("RGB").transpose(Image.Transpose.ROTATE_180).save(tmp_path / f"{name}.png")
        assert differs(drawn(f"workload.{name}={tmp_path / name}.png"), drawn.plain), name


def test_a_batch_of_two_has_the_single_picture_as_its_first(drawn: Drawn) -> None:
    both = drawn("workload.batch_size=2")
    if len(drawn.pipes) > 1:  # later stages of a cascade take the first picture alone
        assert both.shape == drawn.plain.shape
    else:
        assert len(both) == 2 * len(drawn.plain)
        assert not np.array_equal(both[: len(both) // 2], both[len(both) // 2 :])
    assert np.abs(both[: len(drawn.plain)] - drawn.plain).mean() < 2  # of 255: kernels round otherwise for two


def differs(picture: np.ndarray, other: np.ndarray) -> bool:
    """By more than rounding: on the average more than a hundredth of a colour level."""
    return float(np.abs(picture - other).mean()) > 0.01
