"""How diffusers' pipeline classes call their samplers and denoisers; what they are for is in ``families``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SamplerCalls:
    """How a pipeline class calls its sampler."""

    sigmas: Literal["never", "always", "unless_flow"]  # gives it some; unless_flow: not where use_flow_sigmas is set
    generator: bool  # gives each step the generator, without which its noise follows no seed
    # What not every sampler has: ``denoised``, the second value of a step being the denoised latents, and arguments of
    # set_timesteps by their names; with one step alone, more.
    asks: tuple[str, ...]
    asks_in_one_step: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DenoiserCalls:
    """What a pipeline class tells caches of its calls of the denoiser."""

    context: bool  # names each call (cache_context), so that caches can keep several calls of a step apart
    time: bool  # says where it is in the noise (current_timestep)
    step: bool  # the step and its sigma


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What a pipeline's class is to the steps."""

    sampler: SamplerCalls | None  # None: looked at when a sampler is put in
    denoiser: DenoiserCalls | None  # None: looked at when a cache is installed
    loras: bool | None  # has load_lora_weights; None: looked at when a LoRA is loaded
    upscales: int | None  # factor of an upscaler; None: the VAE's


UNKNOWN_PIPELINE = Pipeline(sampler=None, denoiser=None, loras=None, upscales=None)

_PLAIN = SamplerCalls(sigmas="never", generator=False, asks=(), asks_in_one_step=())
_SEEDED = replace(_PLAIN, generator=True)
_SIGMAS = replace(_PLAIN, sigmas="always")
_SPARING = replace(_PLAIN, sigmas="unless_flow")
_NOTHING = DenoiserCalls(context=False, time=False, step=False)
_TIME = DenoiserCalls(context=False, time=True, step=False)
_BOTH = DenoiserCalls(context=True, time=True, step=False)
_ALL = DenoiserCalls(context=True, time=True, step=True)

_SD = Pipeline(sampler=_SEEDED, denoiser=_NOTHING, loras=True, upscales=None)
_SD3 = Pipeline(sampler=_PLAIN, denoiser=_NOTHING, loras=True, upscales=None)
_PIXART = Pipeline(sampler=_SEEDED, denoiser=_NOTHING, loras=False, upscales=None)
_LCM = Pipeline(
    sampler=replace(_SEEDED, asks=("denoised", "original_inference_steps")),
    denoiser=_NOTHING,
    loras=True,
    upscales=None,
)
_SPRINT = replace(
    _LCM, sampler=replace(_SEEDED, asks=("denoised", "max_timesteps", "intermediate_timesteps"))
)  # diffusers' SCMScheduler alone
_FLUX = Pipeline(sampler=_SPARING, denoiser=_BOTH, loras=True, upscales=None)
_FLUX_PICTURE = Pipeline(sampler=_SIGMAS, denoiser=_NOTHING, loras=True, upscales=None)
_KONTEXT = Pipeline(sampler=_SIGMAS, denoiser=_TIME, loras=True, upscales=None)
_QWEN = Pipeline(sampler=_SIGMAS, denoiser=_BOTH, loras=True, upscales=None)

PIPELINES: Mapping[str, Pipeline] = MappingProxyType(
    {
        "CogVideoXPipeline": Pipeline(sampler=_SEEDED, denoiser=_BOTH, loras=True, upscales=None),
        "Flux2KleinInpaintPipeline": _FLUX,
        "Flux2KleinPipeline": _FLUX,
        "FluxImg2ImgPipeline": _FLUX_PICTURE,
        "FluxInpaintPipeline": _FLUX_PICTURE,
        "FluxKontextInpaintPipeline": _KONTEXT,
        "FluxKontextPipeline": _KONTEXT,
        "FluxPipeline": _FLUX,
        "HunyuanVideoPipeline": _QWEN,
        "IFPipeline": _SD,
        "IFSuperResolutionPipeline": replace(_SD, upscales=4),
        "LTXImageToVideoPipeline": _QWEN,
        "LTXPipeline": _QWEN,
        "LatentConsistencyModelImg2ImgPipeline": _LCM,
        "LatentConsistencyModelPipeline": _LCM,
        "PixArtAlphaPipeline": replace(_PIXART, sampler=replace(_SEEDED, asks_in_one_step=("denoised",))),
        "PixArtSigmaPipeline": _PIXART,
        "QwenImageImg2ImgPipeline": _QWEN,
        "QwenImageInpaintPipeline": _QWEN,
        "QwenImagePipeline": _QWEN,
        "SanaPipeline": _SD,
        "SanaSprintImg2ImgPipeline": _SPRINT,
        "SanaSprintPipeline": _SPRINT,
        "StableDiffusion3Img2ImgPipeline": _SD3,
        "StableDiffusion3InpaintPipeline": _SD3,
        "StableDiffusion3Pipeline": _SD3,
        "StableDiffusionControlNetPipeline": _SD,
        "StableDiffusionImg2ImgPipeline": _SD,
        "StableDiffusionInpaintPipeline": _SD,
        "StableDiffusionLatentUpscalePipeline": Pipeline(sampler=_PLAIN, denoiser=_NOTHING, loras=False, upscales=2),
        "StableDiffusionPipeline": _SD,
        "StableDiffusionUpscalePipeline": _SD,
        "StableDiffusionXLImg2ImgPipeline": _SD,
        "StableDiffusionXLInpaintPipeline": _SD,
        "StableDiffusionXLPipeline": _SD,
        "WanPipeline": Pipeline(sampler=_PLAIN, denoiser=_ALL, loras=True, upscales=None),
        "ZImageImg2ImgPipeline": _FLUX_PICTURE,
        "ZImageInpaintPipeline": _FLUX_PICTURE,
        "ZImagePipeline": _FLUX_PICTURE,
    }
)
