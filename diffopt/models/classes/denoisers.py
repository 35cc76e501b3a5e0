"""diffusers' classes of denoisers: transformers and UNets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

# What a denoiser was trained to undo, which a sampler's formulas must be for: noise added to a picture that is scaled
# down (variance preserving), a straight line between picture and noise, or noise added as Karras et al. do.
Process = Literal["diffusion", "flow", "edm"]
# A table of positions, beyond which a picture fails: what is counted, and the config's key for it, or the number that
# the class has: patches along a side, in an area, along each axis with height and width at the end, or the one size
# that was learned, where the key is set.
Positions = tuple[Literal["side", "area", "axes", "learned"], str | int]


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What kernels and processors ask of a denoiser's attention."""

    # What its pipelines hide by a mask: the padding of the text, whatever the prompt; or only where the prompts of a
    # batch differ in length, and there also negative prompts where they share the batch; None: nothing, or not known.
    masks: Literal["text", "uneven_prompts", "uneven_prompts_and_negative"] | None
    separate: bool  # its processors read the separate projections alone, so that none can be fused
    stock: bool  # that of a UNet; of all others diffusers has no plain processor


@dataclass(frozen=True, kw_only=True)
class Caches:
    """What diffusers' caches can work with."""

    enabled: bool | None  # has diffusers' CacheMixin; None: looked at when a cache is installed
    one_sequence_later: bool  # blocks give text and picture at first, and one fused sequence later
    frames: str | None  # layout of an output with both predictions, where it is made of frames
    magnitudes: bool  # diffusers has magnitude ratios of its weights


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """What a denoiser's class is to the steps."""

    process: Process | None  # that its published weights undo; None: not known
    vae: str | None  # class of the VAE of its pipelines; None: there are several, or not known
    # How its config says the channels of attention heads: block by block, as UNets do, where each block may attend or
    # not; by a number, or by width and heads; None: it cannot be told.
    heads: Literal["by_block", "stated"] | None
    # Classes of blocks that repeat, where it declares none to diffusers' compile_repeated_blocks; None: as it declares.
    repeated_blocks: tuple[str, ...] | None
    guides_apart: bool  # its pipelines run the two halves of classifier-free guidance one after the other
    keeps_float32: bool  # diffusers keeps layers in float32, whatever is asked for (_keep_in_fp32_modules)
    # Numbers stored for one weight where torchao pads the inputs of Linears to multiples of 1024: the least of the
    # models that are here.
    int4_padded: float
    positions: Positions | None  # None: for any size, or not known
    attention: Attention
    caches: Caches


_PATCHES: Positions = ("side", "pos_embed_max_size")
_LEARNED: Positions = ("learned", "use_learned_positional_embeddings")
_TURNS: Positions = ("side", "rope_max_seq_len")
_PLAIN = Attention(masks=None, separate=False, stock=False)
_UNCACHED = Caches(enabled=False, one_sequence_later=False, frames=None, magnitudes=False)
_CACHED = replace(_UNCACHED, enabled=True)
UNKNOWN_DENOISER = Denoiser(
    process=None,
    vae=None,
    heads="stated",
    repeated_blocks=None,
    guides_apart=False,
    keeps_float32=False,
    int4_padded=1.6,  # the most of all: 45 % of bfloat16 in groups of 64
    positions=None,
    attention=_PLAIN,
    caches=replace(_UNCACHED, enabled=None),
)
# Diffusion, and without caches. Those whose name begins so have ways of their own to say their heads.
UNKNOWN_UNET = replace(UNKNOWN_DENOISER, process="diffusion", heads=None, caches=_UNCACHED)
UNKNOWN_OTHER_UNET = replace(UNKNOWN_UNET, heads="stated")


def _repeats(*blocks: str, positions: Positions | None = None) -> Denoiser:
    """Of which nothing is known but the blocks and the positions."""
    return replace(UNKNOWN_DENOISER, repeated_blocks=blocks, positions=positions)


# Each answers everything.
_KNOWN = {
    "CogVideoXTransformer3DModel": Denoiser(
        process="diffusion",
        vae="AutoencoderKLCogVideoX",
        heads="stated",
        repeated_blocks=("CogVideoXBlock",),
        guides_apart=False,
        keeps_float32=False,
        int4_padded=1.14,
        positions=_LEARNED,
        attention=_PLAIN,
        caches=replace(_CACHED, frames="BFCHW"),
    ),
    "Flux2Transformer2DModel": Denoiser(
        process="flow",
        vae="AutoencoderKLFlux2",
        heads="stated",
        repeated_blocks=None,
        guides_apart=True,
        keeps_float32=False,
        int4_padded=1.0,
        positions=None,
        attention=_PLAIN,
        caches=replace(_CACHED, one_sequence_later=True),
    ),
    "FluxTransformer2DModel": Denoiser(
        process="flow",
        vae="AutoencoderKL",
        heads="stated",
        repeated_blocks=None,
        guides_apart=True,
        keeps_float32=False,
        int4_padded=1.0,
        positions=None,
        attention=_PLAIN,
        caches=replace(_CACHED, magnitudes=True),
    ),
    "HunyuanVideoTransformer3DModel": Denoiser(
        process="flow",
        vae="AutoencoderKLHunyuanVideo",
        heads="stated",
        repeated_blocks=None,
        guides_apart=True,
        keeps_float32=False,
        int4_padded=1.0,
        positions=None,
        attention=replace(_PLAIN, masks="text"),
        caches=_CACHED,
    ),
    "LTXVideoTransformer3DModel": Denoiser(
        process="flow",
        vae="AutoencoderKLLTXVideo",
        heads="stated",
        repeated_blocks=None,
        guides_apart=False,
        keeps_float32=False,
        int4_padded=1.0,
        positions=None,
        attention=Attention(masks="text", separate=True, stock=False),
        caches=_CACHED,
    ),
    "PixArtTransformer2DModel": Denoiser(
        process="diffusion",
        vae="AutoencoderKL",
        heads="stated",
        repeated_blocks=("BasicTransformerBlock",),
        guides_apart=False,
        keeps_float32=False,
        int4_padded=1.6,
        positions=None,
        attention=Attention(masks="text", separate=False, stock=True),
        caches=_UNCACHED,
    ),
    "QwenImageTransformer2DModel": Denoiser(
        process="flow",
        vae="AutoencoderKLQwenImage",
        heads="stated",
        repeated_blocks=None,
        guides_apart=True,
        keeps_float32=False,
        int4_padded=1.0,
        positions=None,
        attention=Attention(masks="uneven_prompts", separate=True, stock=False),
        caches=_CACHED,
    ),
    "SD3Transformer2DModel": Denoiser(
        process="flow",
        vae="AutoencoderKL",
        heads="stated",
        repeated_blocks=("JointTransformerBlock",),
        guides_apart=False,
        keeps_float32=False,
        int4_padded=1.21,
        positions=_PATCHES,
        attention=_PLAIN,
        caches=_UNCACHED,
    ),
    "SanaTransformer2DModel": Denoiser(
        process="flow",
        vae="AutoencoderDC",
        heads="stated",
        repeated_blocks=("SanaTransformerBlock",),
        guides_apart=False,
        keeps_float32=False,
        int4_padded=1.37,
        positions=None,
        attention=replace(_PLAIN, masks="text"),
        caches=_UNCACHED,
    ),
    "UNet2DConditionModel": Denoiser(
        process="diffusion",
        vae=None,
        heads="by_block",
        repeated_blocks=None,
        guides_apart=False,
        keeps_float32=False,
        int4_padded=1.16,
        positions=None,
        attention=replace(_PLAIN, stock=True),
        caches=_UNCACHED,
    ),
    "WanTransformer3DModel": Denoiser(
        process="flow",
        vae="AutoencoderKLWan",
        heads="stated",
        repeated_blocks=None,
        guides_apart=True,
        keeps_float32=True,
        int4_padded=1.24,
        positions=_TURNS,
        attention=_PLAIN,
        caches=_CACHED,
    ),
    "ZImageTransformer2DModel": Denoiser(
        process="flow",
        vae="AutoencoderKL",
        heads="stated",
        repeated_blocks=None,
        guides_apart=False,
        keeps_float32=False,
        int4_padded=1.11,
        positions=("axes", "axes_lens"),
        attention=Attention(masks="uneven_prompts_and_negative", separate=True, stock=False),
        caches=_UNCACHED,
    ),
}
_STOCK = replace(UNKNOWN_DENOISER, attention=replace(_PLAIN, stock=True))
_KEPT = replace(UNKNOWN_DENOISER, keeps_float32=True)
_KEEPING = (
    "Cosmos3OmniTransformer CosmosTransformer3DModel Flux3Transformer2DModel HeliosTransformer3DModel "
    "JoyImageEditPlusTransformer3DModel JoyImageEditTransformer3DModel Kandinsky6SRTransformer3DModel "
    "Kandinsky6Transformer3DModel Krea2Transformer2DModel MiniMaxH3Transformer3DModel RFD4ProteinaTransformer "
    "WanAnimate2Transformer3DModel"
)
_TURNING = (
    "AnyFlowFARTransformer3DModel AnyFlowTransformer3DModel ChronoEditTransformer3DModel SkyReelsV2Transformer3DModel "
    "WanAnimateTransformer3DModel WanVACETransformer3DModel"
)
# Each is like an unknown one but for what is said here.
_PARTLY_KNOWN = {
    "AllegroTransformer3DModel": _repeats("AllegroTransformerBlock"),
    "AuraFlowTransformer2DModel": _repeats(
        "AuraFlowJointTransformerBlock", "AuraFlowSingleTransformerBlock", positions=("area", "pos_embed_max_size")
    ),
    "CogView3PlusTransformer2DModel": _repeats("CogView3PlusTransformerBlock", positions=_PATCHES),
    "CogView4Transformer2DModel": _repeats("CogView4TransformerBlock"),
    "EasyAnimateTransformer3DModel": _repeats("EasyAnimateTransformerBlock"),
    "HiDreamImageTransformer2DModel": _repeats("HiDreamBlock"),
    "Lumina2Transformer2DModel": _repeats("Lumina2TransformerBlock", positions=("axes", "axes_lens")),
    "MochiTransformer3DModel": _repeats("MochiTransformerBlock"),
    "OmniGenTransformer2DModel": _repeats("OmniGenBlock", positions=_PATCHES),
    "PRXTransformer2DModel": _repeats("PRXBlock"),
    "DiTTransformer2DModel": _STOCK,
    "Transformer2DModel": _STOCK,
    "BriaFibo2Transformer2DModel": replace(UNKNOWN_DENOISER, positions=("axes", "axes_lens")),
    "ConsisIDTransformer3DModel": replace(UNKNOWN_DENOISER, positions=_LEARNED),
    "SanaVideoTransformer3DModel": replace(UNKNOWN_DENOISER, positions=_TURNS),
    "SD3ControlNetModel": replace(UNKNOWN_DENOISER, positions=_PATCHES),  # no denoiser, but beside one in every step
    **dict.fromkeys(_KEEPING.split(), _KEPT),
    **dict.fromkeys(_TURNING.split(), replace(_KEPT, positions=_TURNS)),
    "Kandinsky5Transformer3DModel": replace(_KEPT, positions=("side", 128)),
}
DENOISERS: Mapping[str, Denoiser] = MappingProxyType(_KNOWN | _PARTLY_KNOWN)
