"""Every scheme on rows of zeros, in weights and in what they are multiplied with; and what is not finite is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.option_steps import step
from support.tiny_pipelines import picture, pipeline, site
from torch import nn
from torchao.float8 import inference
from torchao.quantization import Float8Tensor

from diffopt.errors import NoEffect, Refusal
from diffopt.models.resolve import PACKAGED
from diffopt.recipe.options import option_names

# packed by a kernel of the GPU; and what is meant for another model's shapes or parts
ELSEWHERE = {"none", "int4_weight", "int8_dynamic_vae", "int8_weight_text"}
SCHEMES = sorted({*option_names("quant")} - ELSEWHERE)
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(inference, "is_MI300", lambda: True)  # one of the GPUs on which torchao allows float8 products


def small(name: str, **changes: Any) -> Any:
    return step("quant", name, **({} if name == "fp8_storage" else {"min_features": 16}), **changes)


def layer(pipe: Any) -> nn.Linear:
    found = pipe.unet.get_submodule(LAYER)
    assert isinstance(found, nn.Linear)
    return found


@pytest.mark.parametrize("rows", [slice(0, 1), slice(None)], ids=["a row", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SCHEMES)
def test_rows_of_zeros_stay_zeros(name: str, dtype: torch.dtype, rows: slice) -> None:
    if name == "fp8_dynamic_row" and dtype is not torch.bfloat16:
        pytest.skip("torchao takes bfloat16 alone")
    pipe, quant = pipeline(dtype), small(name)
    before = layer(pipe)
    before.weight.data[rows] = 0
    inputs = torch.randn(1, 5, before.in_features, generator=torch.Generator().manual_seed(0)).to(dtype)
    inputs[:, 2] = 0  # such as what a mask left
    wanted = before(inputs).float()
    quant.apply(pipe, site())
    given = layer(pipe)(inputs).float()
    assert torch.isfinite(given).all()
    assert (given[..., rows] == 0).all()
    assert (given[:, 2] == 0).all()
    assert (given - wanted).abs().max() <= 0.1 * wanted.abs().max()
    quant.verify(pipe, site())


def test_a_row_too_small_for_a_scale_in_float16_becomes_zeros() -> None:
    pipe = pipeline(torch.float16)
    layer(pipe).weight.data[0] = 1e-6
    small("fp8_weight").apply(pipe, site())
    assert (layer(pipe).weight.dequantize()[0] == 0).all()  # type: ignore[operator]
    small("fp8_weight").verify(pipe, site())


def test_inputs_that_are_small_are_told_apart() -> None:
    """The bound under the scale of inputs is no bound under the inputs."""
    pipe = pipeline(torch.bfloat16)
    plain = layer(pipe)
    inputs = torch.randn(1, 4, plain.in_features, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16) * 1e-6
    wanted = plain(inputs).float()
    small("fp8_dynamic_row").apply(pipe, site())
    assert (layer(pipe)(inputs).float() - wanted).abs().max() <= 0.1 * wanted.abs().max()


def test_a_pipeline_with_a_row_of_zeros_draws_nearly_the_same() -> None:
    plain, pipe = pipeline(), pipeline()
    for one in (plain, pipe):
        layer(one).weight.data[0] = 0
    small("fp8_weight").apply(pipe, site())
    drawn = picture(pipe)
    assert np.isfinite(drawn).all()
    assert np.abs(drawn - picture(plain)).mean() < 0.05


@pytest.mark.parametrize("name", SCHEMES)
def test_weights_that_are_not_finite_are_said_to_be_so(name: str) -> None:
    pipe, quant = pipeline(torch.bfloat16), small(name)
    layer(pipe).weight.data[1, 1] = torch.nan

    def make() -> None:
        quant.apply(pipe, site())
        quant.verify(pipe, site())

    with pytest.raises((Refusal, NoEffect), match=rf"quant={quant.kind}: unet\.{LAYER}\.weight is not finite"):
        make()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_scale_that_became_something_else_is_found(value: float) -> None:
    pipe, quant = pipeline(torch.bfloat16), small("fp8_weight")
    quant.apply(pipe, site())
    weight = layer(pipe).weight
    assert isinstance(weight, Float8Tensor)
    weight.scale[3] = value
    with pytest.raises(NoEffect, match=rf"quant=fp8_weight: unet\.{LAYER}\.weight\.scale is not finite"):
        quant.verify(pipe, site())
    weight.scale[3] = 1
    weight.qdata.view(torch.uint8)[3, 3] = 0x7F  # no number
    with pytest.raises(NoEffect, match=rf"{LAYER}\.weight\.qdata is not finite"):
        quant.verify(pipe, site())


@pytest.mark.slow
def test_a_folder_with_a_row_of_zeros_runs(diffopt: Callable[..., Any], tmp_path: Path) -> None:
    shutil.copytree(PACKAGED / "tiny", tmp_path / "zero")
    file = tmp_path / "zero" / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state[next(key for key in state if key.endswith("attn1.to_q.weight"))][0] = 0
    save_file(state, file, metadata={"format": "pt"})
    words = ("model=local", "model.path=zero", "quant=fp8_weight", "measure=quick", "workload.steps=2", "study=z")
    done = diffopt("run", *words, "measure.max_variation=9", "hardware=cpu")
    assert done.returncode == 0, done.stderr
    (row,) = (json.loads(path.read_text()) for path in tmp_path.glob("studies/z/cells/*/*/result.json"))
    assert (row["status"], row["valid"], row["reason"]) == ("ok", True, None)
    assert row["choices"]["measure"] == "quick (changed: max_variation)"
