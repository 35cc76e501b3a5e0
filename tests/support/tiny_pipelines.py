"""Stable Diffusion's classes at toy size with random weights, built in code: the pipelines that step tests change."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffopt.schema.hardware import Hardware, PeakTflops, Slurm
from diffopt.schema.model import Limits, Model, Parameters, Pipelines
from diffopt.schema.step import Site

SIZE = 32  # pixels; the VAE halves once, so latents are 16 x 16


def tokenizer() -> CLIPTokenizer:
    """Byte-level CLIP tokenizer without merges: one token per byte, 16 tokens at most."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16)


def _unet(**changes: Any) -> UNet2DConditionModel:
    """32 and 64 channels, 4 self- and 4 cross-attentions."""
    settings: dict[str, Any] = {
        "sample_size": SIZE // 2,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "norm_num_groups": 16,
    }
    return UNet2DConditionModel(**{**settings, **changes})


def _vae() -> AutoencoderKL:
    """Its config says force_upcast, which is diffusers' default."""
    return AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def _text_config(words: CLIPTokenizer, **changes: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        **changes,
    )


def pipeline(dtype: torch.dtype = torch.float32, vae_dtype: torch.dtype | None = None) -> StableDiffusionPipeline:
    """The same random Stable Diffusion in each call."""
    torch.manual_seed(0)
    unet, vae, words = _unet(), _vae(), tokenizer()
    text = CLIPTextModel(_text_config(words))
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    pipe = StableDiffusionPipeline(
        vae=torch.nn.Module.to(vae, vae_dtype or dtype).eval(),
        text_encoder=torch.nn.Module.to(text, dtype).eval(),
        tokenizer=words,
        unet=torch.nn.Module.to(unet, dtype).eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def xl_pipeline(dtype: torch.dtype = torch.float32, vae_dtype: torch.dtype | None = None) -> StableDiffusionXLPipeline:
    """The same random SDXL in each call: two text encoders whose hidden states are read, and size conditions."""
    torch.manual_seed(0)
    words = tokenizer()
    first, second = (
        CLIPTextModel(_text_config(words)),
        CLIPTextModelWithProjection(_text_config(words, projection_dim=32)),
    )
    unet = _unet(
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
        use_linear_projection=True,
    )
    pipe = StableDiffusionXLPipeline(
        vae=torch.nn.Module.to(_vae(), vae_dtype or dtype).eval(),
        text_encoder=torch.nn.Module.to(first, dtype).eval(),
        text_encoder_2=torch.nn.Module.to(second, dtype).eval(),
        tokenizer=words,
        tokenizer_2=tokenizer(),
        unet=torch.nn.Module.to(unet, dtype).eval(),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def xl_site(**changes: Any) -> Site:
    """What a step sees of :func:`xl_pipeline`."""
    return site(text_encoders=("text_encoder", "text_encoder_2"), **changes)


def site(
    *, device: str = "cpu", capability: tuple[int, int] | None = None, overflows: bool = False, **changes: Any
) -> Site:
    """What a step sees: the model that :func:`pipeline` builds, on the CPU."""
    model = Model(
        name="toy",
        id=None,
        revision=None,
        variant=None,
        path=None,
        architecture="toy",
        content=None,
        weights="random",
        pipelines=Pipelines(txt2img="StableDiffusionPipeline"),
        task="txt2img",
        denoiser="unet",
        denoiser_class="UNet2DConditionModel",
        vae="vae",
        text_encoders=("text_encoder",),
        head_sizes=(32,),
        vae_head_size=32,
        size_multiple=2,
        height=SIZE,
        width=SIZE,
        steps=2,
        guidance=5.0,
        prompt="a toy",
        dtype="float32",
        parameters=Parameters(denoiser=None, text_encoders=None, vae=None),
        limits=Limits(fp16_vae_overflows=overflows),
        licence=None,
        gated=None,
    ).model_copy(update=changes)
    hardware = Hardware(
        name=device,
        device=device,  # type: ignore[arg-type]
        match=(),
        compute_capability=capability,
        sms=None,
        memory_gib=None,
        bandwidth_gb_s=None,
        peak_tflops=PeakTflops(fp32=None, tf32=None, fp16=None, bf16=None, fp8=None, int8=None),
        slurm=Slurm(constraint=None, gres=None),
        ray_accelerator=None,
    )
    return Site(model=model, hardware=hardware, workload=None)


def picture(
    pipe: StableDiffusionPipeline | StableDiffusionXLPipeline, steps: int = 2, prompt: str = "a fox", **more: Any
) -> np.ndarray:
    """Height x width x 3 in [0, 1], the same noise in each call."""
    noise = torch.Generator("cpu").manual_seed(7)
    call = {
        "num_inference_steps": steps,
        "height": SIZE,
        "width": SIZE,
        "generator": noise,
        "output_type": "np",
        **more,
    }
    return pipe(prompt, **call).images[0]
