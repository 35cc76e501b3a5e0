"""The components of the built-in model before training: Stable Diffusion's own classes, 3.8 million parameters."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffopt.models.random.clip_tokenizer import build_tokenizer
from diffopt.pipeline.quality.scenes import PIXELS

LATENT_CHANNELS, LATENT_SIZE = 8, PIXELS // 8
TEXT_FEATURES = 128
VOCABULARY = 1024  # the smallest round number with which every word of the grammar is one token


def make_autoencoder() -> AutoencoderKL:
    """Factor 8 as in Stable Diffusion, with 8 channels: (batch, 3, 64, 64) to (batch, 8, 8, 8) and back."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 32, 48),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=PIXELS,
        scaling_factor=1.0,
    )


def make_unet() -> UNet2DConditionModel:
    """Self- and cross-attention at 8x8 (heads of 32) and in the middle, ResNet blocks at 8x8 and 4x4."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(96, 96),
        layers_per_block=1,
        cross_attention_dim=TEXT_FEATURES,
        attention_head_dim=(3, 3),  # diffusers reads this as the number of heads
        norm_num_groups=8,
        time_embedding_dim=192,
        use_linear_projection=True,
    )


def make_tokenizer() -> CLIPTokenizer:
    return build_tokenizer(VOCABULARY)


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_FEATURES,
        projection_dim=TEXT_FEATURES,
        intermediate_size=2 * TEXT_FEATURES,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def make_scheduler() -> DDIMScheduler:
    """Velocity prediction over linear betas: next to no signal is left at the last step, where sampling begins."""
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Keep the variance along the residual path and start every branch at nothing.

    Layers come with an initialisation that shrinks the signal by the square root of 3 each; over a whole network
    GroupNorm then sees mostly biases, and an autoencoder of this size learns several times more slowly.
    """
    for name, module in model.named_modules():
        last_of_branch = name.endswith(("conv2", "to_out.0")) or name == "conv_out"
        if "transformer_blocks" in name or not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if last_of_branch or (name.endswith("proj_out") and "attentions" in name):
            module.weight.zero_()
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        else:
            continue
        if module.bias is not None:
            module.bias.zero_()


def use_plain_attention(model: nn.Module) -> None:
    """On the CPU the gradient of fused attention is slow at these sizes; the plain products give the same."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())
        if isinstance(module, CLIPTextModel):
            module.set_attn_implementation("eager")


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
