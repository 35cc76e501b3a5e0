"""Pipelines of families that no model option names, at toy size, built and saved by plain diffusers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderKLMochi,
    AutoencoderKLWan,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    UniPCMultistepScheduler,
    VQModel,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
)

from diffopt.models.random.tokenizers import tokenizer_of_model_folder
from diffopt.models.resolve import packaged_architecture

WIDTH = 32  # of the text encoders
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}


def _t5() -> dict[str, Any]:
    """A text encoder of T5's kind and its tokenizer."""
    config = T5Config(
        vocab_size=512, d_model=WIDTH, d_kv=16, d_ff=64, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    tokenizer = tokenizer_of_model_folder(packaged_architecture("pixart_sigma", tiny=True) / "tokenizer", "T5Tokenizer")
    return {"text_encoder": T5EncoderModel(config).eval(), "tokenizer": tokenizer}


def _gemma() -> dict[str, Any]:
    config = Gemma2Config(
        vocab_size=2048,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    tokenizer = tokenizer_of_model_folder(
        packaged_architecture("sana_1600m", tiny=True) / "tokenizer", "GemmaTokenizerFast"
    )
    return {"text_encoder": Gemma2Model(config).eval(), "tokenizer": tokenizer}


def _vae(levels: int, channels: int = 16) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
        shift_factor=0.0,
    ).eval()


def chroma() -> Any:
    """A transformer that packs 2x2 latent pixels, and classes for three tasks."""
    transformer = ChromaTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
        **HEADS,
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    return ChromaPipeline(scheduler=scheduler, vae=_vae(4), transformer=transformer.eval(), **_t5())


def lumina2() -> Any:
    """A language model as text encoder; the class takes the VAE's factor for 8."""
    transformer = Lumina2Transformer2DModel(
        sample_size=16,
        hidden_size=48,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(8, 8, 8),
        axes_lens=(300, 64, 64),
        cap_feat_dim=WIDTH,
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    return Lumina2Pipeline(transformer=transformer.eval(), scheduler=scheduler, vae=_vae(4), **_gemma())


def auraflow() -> Any:
    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pos_embed_max_size=64,
        **HEADS,
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    return AuraFlowPipeline(vae=_vae(3, 4), transformer=transformer.eval(), scheduler=scheduler, **_t5())


def kandinsky3() -> Any:
    """A UNet of its own class, and a VAE that is called movq."""
    unet = Kandinsky3UNet(
        time_embedding_dim=32,
        groups=2,
        attention_head_dim=4,
        layers_per_block=2,
        block_out_channels=(64, 128),
        cross_attention_dim=4,
        encoder_hid_dim=WIDTH,
    )
    movq = VQModel(
        block_out_channels=(16,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=8,
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    return Kandinsky3Pipeline(unet=unet.eval(), scheduler=DDPMScheduler(), movq=movq.eval(), **_t5())


def mochi() -> Any:
    """A video from text; the VAE halves time in steps of 2 and 3."""
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=WIDTH,
        time_embed_dim=4,
    )
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    return MochiPipeline(scheduler=scheduler, vae=vae.eval(), transformer=transformer.eval(), **_t5())


def wan_i2v() -> Any:
    """A video that begins with a picture, which an image encoder and its processor read."""
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    transformer = WanTransformer3DModel(
        in_channels=36,
        out_channels=16,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        image_dim=16,
        rope_max_seq_len=64,
        **HEADS,
    )
    return WanImageToVideoPipeline(
        vae=AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        image_encoder=CLIPVisionModel(vision).eval(),
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        transformer=transformer.eval(),
        **_t5(),
    )


BUILDERS: dict[str, Callable[[], Any]] = {
    builder.__name__: builder for builder in (chroma, lumina2, auraflow, kandinsky3, mochi, wan_i2v)
}


def build(name: str) -> Any:
    """The same random pipeline in each call."""
    torch.manual_seed(0)
    pipe = BUILDERS[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe
