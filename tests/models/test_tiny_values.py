"""model.weights=tiny: the values of the tiny configs, where nobody typed others, and what has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffopt.config.resolve import compose_requests
from diffopt.errors import UsageError
from diffopt.models.resolve import PACKAGED, model_folder
from diffopt.recipe.cell import Cell
from diffopt.schema.model import Model


def asked(*words: str) -> Cell:
    (request,) = compose_requests([*words, "hardware=cpu"])
    return request.cell


def model(*words: str) -> Model:
    return asked(*words).recipe.model


def test_the_family_is_the_same_and_its_values_are_small() -> None:
    full, cell = model("model=sdxl"), asked("model=sdxl", "model.weights=tiny")
    small = cell.recipe.model
    assert model_folder(small) == PACKAGED / "sdxl" / "tiny"
    assert (small.height, small.width, small.steps, small.dtype) == (64, 64, 2, "float32")
    assert (cell.workload.height, cell.workload.width, cell.workload.steps) == (64, 64, 2)
    assert (small.head_sizes, small.vae_head_size) == ((16,), 32), "read from the tiny configs"
    assert (small.pipelines, small.denoiser_class, small.prompt) == (full.pipelines, full.denoiser_class, full.prompt)
    assert cell.workload.prompts == (full.prompt,)


def test_what_is_typed_wins_below_a_mapping_too() -> None:
    words = ("model=flux_dev", "model.weights=tiny", "model.height=128", "workload.steps=3")
    cell = asked(*words)
    assert (cell.recipe.model.height, cell.workload.height, cell.workload.width) == (128, 128, 64)
    assert cell.workload.steps == 3
    assert cell.recipe.model.call.max_sequence_length == 32
    assert model(*words, "model.call.max_sequence_length=16").call.max_sequence_length == 16
    assert model(*words, "model.dtype=bfloat16").dtype == "bfloat16"


def test_the_weights_make_another_cell() -> None:
    words = ("model=sdxl", "workload.height=64", "workload.width=64", "workload.steps=2")
    assert len({asked(*words, f"model.weights={weights}").id for weights in ("pretrained", "random", "tiny")}) == 3


def test_every_stage_of_a_cascade_is_tiny() -> None:
    stages = model("model=deepfloyd_if", "model.weights=tiny").stages
    assert [stage.weights for stage in stages] == ["tiny"] * 3
    assert [model_folder(stage) for stage in stages] == [
        PACKAGED / name / "tiny" for name in ("deepfloyd_if_i_m", "deepfloyd_if_ii_m", "sd_x4_upscaler")
    ]


def test_a_sweep_over_families_gives_each_its_own_values() -> None:
    found = compose_requests(["model=sd15,wan21_t2v_1_3b", "model.weights=tiny", "hardware=cpu"], multirun=True)
    assert [(r.cell.recipe.model.name, r.cell.workload.height) for r in found] == [("sd15", 64), ("wan21_t2v_1_3b", 32)]


def test_a_recipe_file_of_a_tiny_cell_is_the_same_cell(tmp_path: Path, cli) -> None:
    words = ("model=deepfloyd_if", "model.weights=tiny", "model.width=32", "hardware=cpu")
    code, out, _ = cli("show", *words)
    assert code == 0
    (tmp_path / "small.yaml").write_text(out)
    (request,) = compose_requests([], lock=tmp_path / "small.yaml")
    assert request.cell == asked(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model=tiny",), "the architecture tiny has no tiny configs beside its own"),
        (("model=local", "model.path=x"), "model=local is not one of the built-in families"),
        (("model=hub", "model.id=org/name"), "model=hub is not one of the built-in families"),
        (("model=sdxl", "model.architecture=mine"), "there is no such architecture. `diffopt ls model`"),
    ],
)
def test_a_model_without_tiny_configs_is_a_mistake(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        asked(*words, "model.weights=tiny")
