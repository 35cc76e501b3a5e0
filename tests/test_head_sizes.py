"""Channels per attention head from component configs, against diffusers' own modules."""

from __future__ import annotations

import json

import pytest
import yaml

from diffopt.compose import shipped_conf
from diffopt.head_sizes import of_denoiser, of_vae
from diffopt.model_files import packaged

UNET = "UNet2DConditionModel"


def config(architecture: str, component: str) -> dict[str, object]:
    return json.loads((packaged(architecture) / component / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_yaml_states_what_the_files_state(name: str) -> None:
    given = yaml.safe_load((shipped_conf() / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert of_denoiser(UNET, config(name, "unet")) == given["head_sizes"]
    assert of_vae(config(name, "vae")) == given["vae_head_size"]


@pytest.mark.parametrize("name", ["sd15", "sdxl", "tiny"])
def test_they_are_those_that_diffusers_builds(name: str) -> None:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.models.attention_processor import Attention

    with torch.device("meta"):
        unet, vae = (
            cls.from_config(config(name, part))
            for cls, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
        )
    built = {
        component: sorted({m.inner_dim // m.heads for m in module.modules() if isinstance(m, Attention)})
        for component, module in (("unet", unet), ("vae", vae))
    }
    assert of_denoiser(UNET, config(name, "unet")) == built["unet"]
    assert [of_vae(config(name, "vae"))] == built["vae"]


def test_unknown_blocks_are_not_guessed() -> None:
    known = config("sd15", "unet")
    assert of_denoiser(UNET, {**known, "down_block_types": ["SimpleCrossAttnDownBlock2D"] * 4}) is None
    assert of_denoiser("FluxTransformer2DModel", {"attention_head_dim": 128}) == [128]
    assert of_denoiser("Other", {}) is None
    assert of_vae({"block_out_channels": [64, 128], "mid_block_add_attention": False}) is None
