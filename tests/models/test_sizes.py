"""Channels per attention head from component configs, against diffusers' own modules."""

from __future__ import annotations

import json
from typing import Any

import pytest

from diffopt.models.resolve import PACKAGED
from diffopt.models.sizes import head_size_of_vae, head_sizes_of_denoiser

UNET = "UNet2DConditionModel"
SMALL = sorted(str(path.parent.relative_to(PACKAGED)) for path in PACKAGED.glob("*/tiny/model_index.json"))


def config(architecture: str, component: str) -> dict[str, Any]:
    return json.loads((PACKAGED / architecture / component / "config.json").read_text(encoding="utf-8"))


def built(architecture: str, component: str) -> Any:
    """The module on the meta device."""
    import diffusers
    import torch

    cls = getattr(diffusers, index(architecture)[component][1])
    with torch.device("meta"):
        return cls.from_config(config(architecture, component))


def index(architecture: str) -> dict[str, Any]:
    return json.loads((PACKAGED / architecture / "model_index.json").read_text(encoding="utf-8"))


def head_sizes(module: Any) -> set[int]:
    """Of every attention in the module, by whatever names it has for width and heads."""
    return {
        part.inner_dim // part.heads
        for part in module.modules()
        if hasattr(part, "inner_dim") and hasattr(part, "heads")
    }


@pytest.mark.parametrize("name", ["sd15", "sdxl", "tiny", "sd_x4_upscaler", "deepfloyd_if_i_m", "deepfloyd_if_ii_m"])
def test_a_unets_are_those_that_diffusers_builds(name: str) -> None:
    assert head_sizes_of_denoiser(UNET, config(name, "unet")) == sorted(head_sizes(built(name, "unet")))


@pytest.mark.parametrize("name", [name for name in SMALL if "transformer" in index(name)])
def test_a_transformers_are_those_that_diffusers_builds(name: str) -> None:
    class_name = index(name)["transformer"][1]
    found = head_sizes(built(name, "transformer"))
    assert found, "no attention was recognized"
    told = head_sizes_of_denoiser(class_name, config(name, "transformer"))
    if "Sana" in class_name:  # its self-attention is linear and has no kernels
        assert set(told or ()) < found
    else:
        assert set(told or ()) == found


@pytest.mark.parametrize("name", ["sd15", "sdxl", "tiny", "flux_dev", "pixart_sigma"])
def test_a_vaes_is_the_one_that_diffusers_builds(name: str) -> None:
    assert {head_size_of_vae("AutoencoderKL", config(name, "vae"))} == head_sizes(built(name, "vae"))


@pytest.mark.parametrize("name", ["wan21_t2v_1_3b", "qwen_image"])
def test_one_head_as_wide_as_the_middle(name: str) -> None:
    """These VAEs attend by a class of their own, whose one head is all channels of its convolution."""
    module = built(name, "vae")
    widths = {part.to_qkv.in_channels for part in module.modules() if hasattr(part, "to_qkv")}
    assert {head_size_of_vae(type(module).__name__, config(name, "vae"))} == widths


def test_unknown_blocks_are_not_guessed() -> None:
    known = config("sd15", "unet")
    assert head_sizes_of_denoiser(UNET, {**known, "down_block_types": ["NewDownBlock2D"] * 4}) is None
    assert head_sizes_of_denoiser("UNetMotionModel", known) is None
    assert head_sizes_of_denoiser("FluxTransformer2DModel", {"attention_head_dim": 128}) == [128]
    assert head_sizes_of_denoiser("Lumina2Transformer2DModel", {"hidden_size": 2304, "num_attention_heads": 24}) == [96]
    assert head_sizes_of_denoiser("Other", {}) is None
    assert (
        head_size_of_vae("AutoencoderKL", {"block_out_channels": [64, 128], "mid_block_add_attention": False}) is None
    )
    assert head_size_of_vae("AutoencoderDC", {"block_out_channels": [64, 128]}) is None
