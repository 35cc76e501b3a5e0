"""Folders of pipelines whose parts do not fit together, or not what is asked of them; a plan by itself sees none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionControlNetPipeline, WanTransformer3DModel
from support import tiny_pipelines
from support.tiny_families import cell, pipelines
from transformers import CLIPTextConfig, CLIPTextModel


def plain() -> Any:
    return tiny_pipelines.pipeline()


def wide_unet() -> Any:
    """Its UNet reads text of another width than the text encoder writes."""
    pipe = plain()
    pipe.register_modules(unet=tiny_pipelines._unet(cross_attention_dim=64))
    return pipe


def other_vae() -> Any:
    """Its VAE has other latents than the UNet."""
    pipe = plain()
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    pipe.register_modules(
        vae=AutoencoderKL(block_out_channels=(16, 32), latent_channels=16, norm_num_groups=8, **levels)
    )
    return pipe


def short_vocabulary() -> Any:
    """Its tokenizer has more words than its text encoder."""
    pipe = plain()
    config = CLIPTextConfig(**{**pipe.text_encoder.config.to_dict(), "vocab_size": 100})
    pipe.register_modules(text_encoder=CLIPTextModel(config))
    return pipe


def long_prompts() -> Any:
    """Its tokenizer gives more tokens than the text encoder has positions."""
    pipe = plain()
    pipe.tokenizer.model_max_length = 32
    return pipe


def controlnet(**changes: Any) -> Any:
    """With a ControlNet whose map is as much larger than the latents as the VAE says."""
    pipe = plain()
    beside = ControlNetModel.from_unet(tiny_pipelines._unet(**changes), conditioning_embedding_out_channels=(16, 32))
    parts = {**pipe.components, "controlnet": beside, "safety_checker": None, "feature_extractor": None}
    return StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)


def wide_controlnet() -> Any:
    """Its ControlNet has blocks of other widths than the UNet."""
    return controlnet(block_out_channels=(32, 96))


def short_video() -> Any:
    """Its transformer has positions for a few frames alone."""
    (pipe,) = pipelines(cell("wan21_t2v_1_3b"))
    pipe.register_modules(
        transformer=WanTransformer3DModel.from_config({**pipe.transformer.config, "rope_max_seq_len": 4})
    )
    return pipe


# What is made, the words of the command line, and what is said of it.
MISFITS: dict[str, tuple[Callable[[], Any], tuple[str, ...], tuple[str, ...]]] = {
    "unet": (wide_unet, (), ("its unet (UNet2DConditionModel)", "cross_attention_dim=64, and encoder_hidden_states")),
    "vae": (other_vae, (), ("its vae (AutoencoderKL, decode)", "latent_channels=16, and z has 4")),
    "vocabulary": (short_vocabulary, (), ("its text_encoder (CLIPTextModel)", "index out of range")),
    "positions": (long_prompts, (), ("its text_encoder", "max_position_embeddings")),
    "controlnet": (wide_controlnet, (), ("its unet", "96")),
    "sampler": (
        plain,
        ("scheduler=euler", "scheduler.class_name=ScoreSdeVeScheduler"),
        ("scheduler=euler", "not compatible with this model's PNDMScheduler", "choose another scheduler"),
    ),
    "frames": (
        short_video,
        ("workload.height=64", "workload.width=64", "workload.frames=21"),
        ("workload.frames=21", "its transformer (WanTransformer3DModel)", "with workload.frames=5 it works"),
    ),
}
