"""What diffusers' pipelines hand to their denoisers, as tensors without values, for counting on the meta device.

One function per denoiser class. Shapes follow the pipelines of diffusers 0.42; the tests compare them with what the
pipelines really pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from diffopt.schema.model import Model

# Tokens of a prompt where the pipeline pads to no fixed length: about twice a customary prompt.
UNPADDED = 64
CLIP_TOKENS = 77
PIXELS = 1  # a denoiser without a VAE works on pixels


@dataclass(frozen=True)
class Asked:
    """One call of a denoiser: its config, and the sizes of what it is given."""

    config: Mapping[str, Any]
    batch: int
    frames: int  # latent frames; 1 for a picture
    height: int  # of the latents, as is the width
    width: int
    tokens: int | None  # length of the prompt, where the model option gives one; None: the pipeline's own
    edits: bool  # whether the tokens of a picture to edit stand beside those of the new one

    def tensor(self, *shape: int) -> torch.Tensor:
        """A tensor of this shape, float32 and without values."""
        return torch.empty(shape, device="meta")

    def times(self) -> torch.Tensor:
        """One timestep for each of the batch."""
        return self.tensor(self.batch)

    def ids(self, *shape: int) -> torch.Tensor:
        """Whole numbers, such as positions."""
        return torch.empty(shape, dtype=torch.int64, device="meta")


def inputs(denoiser: str, asked: Asked) -> dict[str, Any]:
    """Arguments of one call of the denoiser class ``denoiser``. Raises KeyError for a class that no option has."""
    return CALLED[denoiser](asked)


def asked_of(model: Model, config: Mapping[str, Any], vae: Any, batch: int) -> Asked:
    """The call that the customary size of ``model`` leads to; ``vae`` is its module, None where there is none."""
    space, time = (PIXELS, 1) if vae is None else factors(vae)
    return Asked(
        config=config,
        batch=batch,
        frames=((model.frames or 1) - 1) // time + 1,
        height=model.height // space,
        width=model.width // space,
        tokens=model.call.max_sequence_length if model.embeddings is None else model.embeddings.tokens,
        edits=model.task == "edit",
    )


def factors(vae: Any) -> tuple[int, int]:
    """Pixels per latent pixel in one direction, and frames per latent frame."""
    config = vae.config
    if "scale_factor_spatial" in config:  # Wan
        return config["scale_factor_spatial"], config["scale_factor_temporal"]
    if hasattr(vae, "spatial_compression_ratio"):
        return vae.spatial_compression_ratio, getattr(vae, "temporal_compression_ratio", 1)
    levels = config.get("block_out_channels") or config["dim_mult"]
    return 2 ** (len(levels) - 1), config.get("temporal_compression_ratio") or 1


def _unet(asked: Asked) -> dict[str, Any]:
    config, batch = asked.config, asked.batch
    width = config.get("encoder_hid_dim") or config["cross_attention_dim"]
    call: dict[str, Any] = {
        "sample": asked.tensor(batch, config["in_channels"], asked.height, asked.width),
        "timestep": asked.times(),
        "encoder_hidden_states": asked.tensor(batch, asked.tokens or CLIP_TOKENS, width),
    }
    if config.get("addition_embed_type") == "text_time":
        ids = 6  # original size, crop and target size, two numbers each
        pooled = config["projection_class_embeddings_input_dim"] - ids * config["addition_time_embed_dim"]
        call["added_cond_kwargs"] = {"text_embeds": asked.tensor(batch, pooled), "time_ids": asked.tensor(batch, ids)}
    if config.get("num_class_embeds") is not None or config.get("class_embed_type") == "timestep":
        call["class_labels"] = asked.ids(batch)  # how much noise is on the small picture
    return call


def _flux(asked: Asked) -> dict[str, Any]:
    config, batch = asked.config, asked.batch
    pixels = (asked.height // 2) * (asked.width // 2) * (2 if asked.edits else 1)
    tokens = asked.tokens or 512
    return {
        "hidden_states": asked.tensor(batch, pixels, config["in_channels"]),
        "timestep": asked.times(),
        "guidance": asked.tensor(batch) if config["guidance_embeds"] else None,
        "pooled_projections": asked.tensor(batch, config["pooled_projection_dim"]),
        "encoder_hidden_states": asked.tensor(batch, tokens, config["joint_attention_dim"]),
        "txt_ids": asked.tensor(tokens, 3),
        "img_ids": asked.tensor(pixels, 3),
    }


def _flux2(asked: Asked) -> dict[str, Any]:
    config, batch = asked.config, asked.batch
    pixels, tokens = (asked.height // 2) * (asked.width // 2), asked.tokens or 512
    return {
        "hidden_states": asked.tensor(batch, pixels, config["in_channels"]),
        "timestep": asked.times(),
        "guidance": asked.tensor(batch) if config["guidance_embeds"] else None,
        "encoder_hidden_states": asked.tensor(batch, tokens, config["joint_attention_dim"]),
        "txt_ids": asked.ids(batch, tokens, 4),
        "img_ids": asked.ids(batch, pixels, 4),
    }


def _sd3(asked: Asked) -> dict[str, Any]:
    config, batch = asked.config, asked.batch
    tokens = CLIP_TOKENS + (asked.tokens or 256)  # both CLIPs side by side, T5 after them
    return {
        "hidden_states": asked.tensor(batch, config["in_channels"], asked.height, asked.width),
        "timestep": asked.times(),
        "encoder_hidden_states": asked.tensor(batch, tokens, config["joint_attention_dim"]),
        "pooled_projections": asked.tensor(batch, config["pooled_projection_dim"]),
    }


def _masked_caption(asked: Asked) -> dict[str, Any]:
    """PixArt and Sana."""
    config, batch, tokens = asked.config, asked.batch, asked.tokens or 300
    return {
        "hidden_states": asked.tensor(batch, config["in_channels"], asked.height, asked.width),
        "encoder_hidden_states": asked.tensor(batch, tokens, config["caption_channels"]),
        "encoder_attention_mask": asked.ids(batch, tokens),
        "timestep": asked.times(),
    }


def _pixart(asked: Asked) -> dict[str, Any]:
    return {**_masked_caption(asked), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}


def _qwen(asked: Asked) -> dict[str, Any]:
    config, batch, tokens = asked.config, asked.batch, UNPADDED
    height, width = asked.height // 2, asked.width // 2
    return {
        "hidden_states": asked.tensor(batch, height * width, config["in_channels"]),
        "timestep": asked.times(),
        "encoder_hidden_states": asked.tensor(batch, tokens, config["joint_attention_dim"]),
        "encoder_hidden_states_mask": None,
        "img_shapes": [[(1, height, width)]] * batch,
    }


def _z_image(asked: Asked) -> dict[str, Any]:
    config = asked.config
    return {
        "x": [asked.tensor(config["in_channels"], 1, asked.height, asked.width) for _ in range(asked.batch)],
        "t": asked.times(),
        "cap_feats": [asked.tensor(UNPADDED, config["cap_feat_dim"]) for _ in range(asked.batch)],
    }


def _wan(asked: Asked) -> dict[str, Any]:
    config, batch = asked.config, asked.batch
    return {
        "hidden_states": asked.tensor(batch, config["in_channels"], asked.frames, asked.height, asked.width),
        "timestep": asked.times(),
        "encoder_hidden_states": asked.tensor(batch, asked.tokens or 512, config["text_dim"]),
    }


def _hunyuan(asked: Asked) -> dict[str, Any]:
    config, batch, tokens = asked.config, asked.batch, asked.tokens or 256
    return {
        "hidden_states": asked.tensor(batch, config["in_channels"], asked.frames, asked.height, asked.width),
        "timestep": asked.times(),
        "encoder_hidden_states": asked.tensor(batch, tokens, config["text_embed_dim"]),
        "encoder_attention_mask": asked.ids(batch, tokens),
        "pooled_projections": asked.tensor(batch, config["pooled_projection_dim"]),
        "guidance": asked.tensor(batch) if config["guidance_embeds"] else None,
    }


def _ltx(asked: Asked) -> dict[str, Any]:
    config, batch, tokens = asked.config, asked.batch, asked.tokens or 128
    return {
        "hidden_states": asked.tensor(batch, asked.frames * asked.height * asked.width, config["in_channels"]),
        "encoder_hidden_states": asked.tensor(batch, tokens, config["caption_channels"]),
        "timestep": asked.times(),
        "encoder_attention_mask": asked.ids(batch, tokens),
        "num_frames": asked.frames,
        "height": asked.height,
        "width": asked.width,
        "rope_interpolation_scale": (8 / 25, 32, 32),
    }


def _cogvideox(asked: Asked) -> dict[str, Any]:
    config, batch = asked.config, asked.batch
    pixels = asked.frames * (asked.height // config["patch_size"]) * (asked.width // config["patch_size"])
    table = (pixels, config["attention_head_dim"])
    rotary = config["use_rotary_positional_embeddings"]
    return {
        "hidden_states": asked.tensor(batch, asked.frames, config["in_channels"], asked.height, asked.width),
        "encoder_hidden_states": asked.tensor(batch, asked.tokens or 226, config["text_embed_dim"]),
        "timestep": asked.times(),
        "image_rotary_emb": (asked.tensor(*table), asked.tensor(*table)) if rotary else None,
    }


CALLED: dict[str, Callable[[Asked], dict[str, Any]]] = {
    "UNet2DConditionModel": _unet,
    "FluxTransformer2DModel": _flux,
    "Flux2Transformer2DModel": _flux2,
    "SD3Transformer2DModel": _sd3,
    "SanaTransformer2DModel": _masked_caption,
    "PixArtTransformer2DModel": _pixart,
    "QwenImageTransformer2DModel": _qwen,
    "ZImageTransformer2DModel": _z_image,
    "WanTransformer3DModel": _wan,
    "HunyuanVideoTransformer3DModel": _hunyuan,
    "LTXVideoTransformer3DModel": _ltx,
    "CogVideoXTransformer3DModel": _cogvideox,
}
