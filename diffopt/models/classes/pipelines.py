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
    prompt_tokens: int | None  # read of a prompt unless the call says otherwise; None: as many as the tokenizer gives


UNKNOWN_PIPELINE = Pipeline(sampler=None, denoiser=None, loras=None, upscales=None, prompt_tokens=None)

_PLAIN = SamplerCalls(sigmas="never", generator=False, asks=(), asks_in_one_step=())
_SEEDED = replace(_PLAIN, generator=True)
_SIGMAS = replace(_PLAIN, sigmas="always")
_SPARING = replace(_PLAIN, sigmas="unless_flow")
_NOTHING = DenoiserCalls(context=False, time=False, step=False)
_TIME = DenoiserCalls(context=False, time=True, step=False)
_BOTH = DenoiserCalls(context=True, time=True, step=False)
_ALL = DenoiserCalls(context=True, time=True, step=True)

_SD = Pipeline(sampler=_SEEDED, denoiser=_NOTHING, loras=True, upscales=None, prompt_tokens=None)
_SD3 = Pipeline(sampler=_PLAIN, denoiser=_NOTHING, loras=True, upscales=None, prompt_tokens=256)
_PIXART = Pipeline(sampler=_SEEDED, denoiser=_NOTHING, loras=False, upscales=None, prompt_tokens=300)
_FLUX = Pipeline(sampler=_SPARING, denoiser=_BOTH, loras=True, upscales=None, prompt_tokens=512)
_FLUX_PICTURE = Pipeline(sampler=_SIGMAS, denoiser=_NOTHING, loras=True, upscales=None, prompt_tokens=512)
_KONTEXT = Pipeline(sampler=_SIGMAS, denoiser=_TIME, loras=True, upscales=None, prompt_tokens=512)
_QWEN = Pipeline(sampler=_SIGMAS, denoiser=_BOTH, loras=True, upscales=None, prompt_tokens=512)
_LCM = Pipeline(
    sampler=replace(_SEEDED, asks=("denoised", "original_inference_steps")),
    denoiser=_NOTHING,
    loras=True,
    upscales=None,
    prompt_tokens=None,
)
_SPRINT = replace(  # diffusers' SCMScheduler alone
    _LCM,
    sampler=replace(_SEEDED, asks=("denoised", "max_timesteps", "intermediate_timesteps")),
    prompt_tokens=300,
)

PIPELINES: Mapping[str, Pipeline] = MappingProxyType(
    {
        "CogVideoXPipeline": Pipeline(sampler=_SEEDED, denoiser=_BOTH, loras=True, upscales=None, prompt_tokens=226),
        "Flux2KleinInpaintPipeline": _FLUX,
        "Flux2KleinPipeline": _FLUX,
        "FluxImg2ImgPipeline": _FLUX_PICTURE,
        "FluxInpaintPipeline": _FLUX_PICTURE,
        "FluxKontextInpaintPipeline": _KONTEXT,
        "FluxKontextPipeline": _KONTEXT,
        "FluxPipeline": _FLUX,
        "HunyuanVideoPipeline": replace(_QWEN, prompt_tokens=256),
        "IFPipeline": replace(_SD, prompt_tokens=77),
        "IFSuperResolutionPipeline": replace(_SD, upscales=4, prompt_tokens=77),
        "LTXImageToVideoPipeline": replace(_QWEN, prompt_tokens=128),
        "LTXPipeline": replace(_QWEN, prompt_tokens=128),
        "LatentConsistencyModelImg2ImgPipeline": _LCM,
        "LatentConsistencyModelPipeline": _LCM,
        "PixArtAlphaPipeline": replace(
            _PIXART, sampler=replace(_SEEDED, asks_in_one_step=("denoised",)), prompt_tokens=120
        ),
        "PixArtSigmaPipeline": _PIXART,
        "QwenImageImg2ImgPipeline": _QWEN,
        "QwenImageInpaintPipeline": _QWEN,
        "QwenImagePipeline": _QWEN,
        "SanaPipeline": replace(_SD, prompt_tokens=300),
        "SanaSprintImg2ImgPipeline": _SPRINT,
        "SanaSprintPipeline": _SPRINT,
        "StableDiffusion3Img2ImgPipeline": _SD3,
        "StableDiffusion3InpaintPipeline": _SD3,
        "StableDiffusion3Pipeline": _SD3,
        "StableDiffusionControlNetPipeline": _SD,
        "StableDiffusionImg2ImgPipeline": _SD,
        "StableDiffusionInpaintPipeline": _SD,
        "StableDiffusionLatentUpscalePipeline": replace(_PIXART, sampler=_PLAIN, upscales=2, prompt_tokens=None),
        "StableDiffusionPipeline": _SD,
        "StableDiffusionUpscalePipeline": _SD,
        "StableDiffusionXLImg2ImgPipeline": _SD,
        "StableDiffusionXLInpaintPipeline": _SD,
        "StableDiffusionXLPipeline": _SD,
        "WanPipeline": Pipeline(sampler=_PLAIN, denoiser=_ALL, loras=True, upscales=None, prompt_tokens=512),
        "ZImageImg2ImgPipeline": _FLUX_PICTURE,
        "ZImageInpaintPipeline": _FLUX_PICTURE,
        "ZImagePipeline": _FLUX_PICTURE,
    }
)
