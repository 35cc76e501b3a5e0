"""Quantized pipelines, saved and read again: safetensors alone, and the same pictures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import save_file
from support.option_steps import step
from support.slow import first_ones
from support.tiny_families import apply, cell, drawn, error, pipelines
from torch import nn

import diffopt
from diffopt import Refusal, save_quantized

SAME = 1e-5  # of pictures in [0, 1]; a sum may be rounded in another order
CASES = [
    ("sd15", "int8_dynamic"),
    ("sd15", "int8_dynamic_vae"),
    ("sd15_controlnet", "int8_weight"),
    ("flux_dev", "int8_weight_text"),
    ("flux_dev", "fp8_weight"),
    ("wan21_t2v_1_3b", "int8_weight"),  # has a parameter at the root of its paths
    ("qwen_image", "int8_weight_text"),
    ("sd15", "fp8_storage"),
]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def quantized(family: str, name: str) -> tuple[Any, Any, Any]:
    """The cell, its pipeline with the option applied, and the step."""
    asked, quant = cell(family), step("quant", name)
    (pipe,) = pipelines(asked)
    quant.apply(pipe, asked.sites[0])
    return asked, pipe, quant


def read(folder: Path) -> Any:
    """As anybody would who knows diffusers alone."""
    pipe = DiffusionPipeline.from_pretrained(
        str(folder), dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        for weight in part.parameters() if isinstance(part, torch.nn.Module) else ():
            if type(weight.data) is torch.Tensor:
                # A mapped file's are not aligned; oneDNN rounds by that, by 5e-7, and a step of int8 makes 0.1 of it.
                weight.data = weight.data.clone()
    return pipe


@pytest.mark.parametrize(("family", "name"), first_ones(CASES, 4))
def test_a_saved_pipeline_draws_the_same_when_plain_diffusers_reads_it(family, name, tmp_path):
    asked, pipe, quant = quantized(family, name)
    before = drawn([pipe], asked)
    save_quantized(pipe, tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".py")]
    again = read(tmp_path)
    if name == "fp8_storage":  # the values are the stored ones, and so is the picture once they are stored so again
        quant.apply(again, asked.sites[0])
    assert error(drawn([again], asked), before) <= SAME
    assert quant.verify(again, asked.sites[0]).numbers == quant.verify(pipe, asked.sites[0]).numbers


def test_the_file_is_smaller_and_holds_narrow_weights(tmp_path):
    asked, pipe, quant = quantized("flux_dev", "int8_weight")
    pipelines(asked)[0].save_pretrained(str(tmp_path / "wide"))
    save_quantized(pipe, tmp_path / "narrow")
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "narrow" / name).stat().st_size < 0.5 * (tmp_path / "wide" / name).stat().st_size
    with safe_open(tmp_path / "narrow" / name, framework="pt") as weights:
        narrow = [weights.get_tensor(key).dtype for key in weights.keys() if key.endswith("_weight_qdata")]  # noqa: SIM118
    assert narrow == [torch.int8] * quant.verify(pipe, asked.sites[0]).numbers["transformer"]


def test_diffopt_reads_it_as_a_local_model(tmp_path):
    asked, pipe, quant = quantized("sd15", "int8_weight")
    save_quantized(pipe, tmp_path)
    again = diffopt.load(overrides=["model=local", f"model.path={tmp_path}", "hardware=cpu"])
    assert error(drawn([again], asked), drawn([pipe], asked)) <= SAME
    quant.verify(again, asked.sites[0])


def test_the_pipeline_stays_as_it_was(tmp_path):
    asked, pipe, quant = quantized("flux_dev", "int8_weight_text")
    before = drawn([pipe], asked)
    save_quantized(pipe, tmp_path)
    for part in (value for value in pipe.components.values() if isinstance(value, nn.Module)):
        assert not hasattr(part, "hf_quantizer")
        assert "quantization_config" not in part.config
    assert np.array_equal(drawn([pipe], asked), before)
    quant.verify(pipe, asked.sites[0])


def test_it_can_be_saved_again(tmp_path):
    asked, pipe, _ = quantized("sd15", "int8_weight")
    save_quantized(pipe, tmp_path / "first")
    again = read(tmp_path / "first")
    again.save_pretrained(str(tmp_path / "second"))
    assert error(drawn([read(tmp_path / "second")], asked), drawn([pipe], asked)) <= SAME


def test_the_config_says_how_it_was_quantized(tmp_path):
    _, pipe, _ = quantized("sd15", "int8_dynamic")
    save_quantized(pipe, tmp_path)
    said = json.loads((tmp_path / "unet" / "config.json").read_text())["quantization_config"]
    assert said["quant_type"]["default"]["_type"] == "Int8DynamicActivationInt8WeightConfig"
    assert "quantization_config" not in json.loads((tmp_path / "vae" / "config.json").read_text())


def test_a_pipeline_that_is_not_quantized_is_refused(tmp_path):
    with pytest.raises(Refusal, match="use its own save_pretrained"):
        save_quantized(pipelines(cell("sd15"))[0], tmp_path)


@pytest.mark.parametrize("name", ["int8_weight", "fp8_storage"])
def test_the_layers_of_a_lora_are_refused(name, tmp_path):
    pytest.importorskip("peft")
    asked = cell("flux_dev")
    (pipe,) = pipelines(asked)
    file, folder = tmp_path / "lora.safetensors", tmp_path / "saved"
    linear = pipe.transformer.transformer_blocks[0].attn.to_k
    path, noise = "transformer.transformer_blocks.0.attn.to_k", torch.Generator().manual_seed(0)
    down = torch.randn(4, linear.in_features, generator=noise)
    up = torch.randn(linear.out_features, 4, generator=noise)
    save_file({f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}, file)
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    apply([pipe], asked, step("lora", "live", path=str(file), content=content), step("quant", name))
    with pytest.raises(Refusal, match="transformer has the layers of a LoRA.*use lora=fused"):
        save_quantized(pipe, folder)
    assert not folder.exists()


def test_what_a_folder_cannot_tell_is_refused(tmp_path):
    asked = cell("sd15")
    (pipe,) = pipelines(asked)
    step("fuse", "qkv").apply(pipe, asked.sites[0])
    step("quant", "int8_weight").apply(pipe, asked.sites[0])
    with pytest.raises(Refusal, match="projections of (unet|vae) are fused"):
        save_quantized(pipe, tmp_path)
    _, pipe, _ = quantized("sd15", "int8_weight")
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with pytest.raises(Refusal, match="unet is compiled; use compile=none"):
        save_quantized(pipe, tmp_path)
    _, pipe, _ = quantized("sd15", "int8_weight")
    pipe.vae.to("meta")
    with pytest.raises(Refusal, match="weights of vae are offloaded"):
        save_quantized(pipe, tmp_path)
    assert not list(tmp_path.iterdir())
