"""What diffusers' samplers can sample and how pipelines call them, as data, so that a plan needs no torch.

Read in diffusers 0.42.1; tests/test_steps_scheduler.py compares it with the library that is installed. Classes that are
not listed are let through here and looked at when the sampler is put in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from diffopt.step import Site

# What a denoiser was trained to undo, which a sampler's formulas must be for: noise added to a picture that is scaled
# down (variance preserving), a straight line between picture and noise, or noise added as Karras et al. do.
Process = Literal["diffusion", "flow", "edm"]
NAMES: dict[Process, str] = {"diffusion": "diffusion", "flow": "flow matching", "edm": "EDM"}


@dataclass(frozen=True, kw_only=True)
class Known:
    """One class of sampler."""

    process: frozenset[Process] = frozenset({"diffusion"})
    sigmas: bool = False  # set_timesteps takes the sigmas that a pipeline gives
    noise: bool = False  # draws noise in every step
    twice: bool = False  # has the denoiser called twice in each step but the last
    waits: bool = False  # every step waits for the device, wherever its schedule lies
    pipelines: str = ""  # made for these alone: the beginning of their names
    packages: tuple[str, ...] = ()

    @property
    def solves_both(self) -> bool:
        """Whether use_flow_sigmas decides what it samples."""
        return {"diffusion", "flow"} <= self.process


_FLOW: frozenset[Process] = frozenset({"flow"})
_BOTH: frozenset[Process] = frozenset({"diffusion", "flow"})
_EDM: frozenset[Process] = frozenset({"edm"})
SAMPLERS = {
    "CogVideoXDDIMScheduler": Known(pipelines="CogVideoX"),
    "CogVideoXDPMScheduler": Known(pipelines="CogVideoX", noise=True),
    "DDIMParallelScheduler": Known(),
    "DDIMScheduler": Known(),
    "DDPMScheduler": Known(noise=True),
    "DEISMultistepScheduler": Known(process=_BOTH),
    "DPMSolverMultistepScheduler": Known(process=_BOTH),
    "DPMSolverSDEScheduler": Known(noise=True, twice=True, packages=("torchsde",)),
    "DPMSolverSinglestepScheduler": Known(process=_BOTH),
    "EDMDPMSolverMultistepScheduler": Known(process=_EDM),
    "EDMEulerScheduler": Known(process=_EDM, sigmas=True),
    "EulerAncestralDiscreteScheduler": Known(noise=True),
    "EulerDiscreteScheduler": Known(sigmas=True),
    "FlowMatchEulerDiscreteScheduler": Known(process=_FLOW, sigmas=True),
    "FlowMatchHeunDiscreteScheduler": Known(process=_FLOW, twice=True),
    "FlowMatchLCMScheduler": Known(process=_FLOW, sigmas=True, noise=True),
    "HeunDiscreteScheduler": Known(twice=True),
    "KDPM2AncestralDiscreteScheduler": Known(noise=True, twice=True),
    "KDPM2DiscreteScheduler": Known(twice=True),
    "LCMScheduler": Known(noise=True),
    "LMSDiscreteScheduler": Known(packages=("scipy",)),
    "LTXEulerAncestralRFScheduler": Known(process=_FLOW, sigmas=True, noise=True, waits=True),
    "PNDMScheduler": Known(),
    "SASolverScheduler": Known(process=_BOTH, noise=True),
    "TCDScheduler": Known(noise=True),
    # copies sigmas to the device and solves a small linear system there
    "UniPCMultistepScheduler": Known(process=_BOTH, sigmas=True, waits=True),
}

# Denoisers whose published weights match a flow.
FLOW_DENOISERS = frozenset(
    {
        "Flux2Transformer2DModel",
        "FluxTransformer2DModel",
        "HunyuanVideoTransformer3DModel",
        "LTXVideoTransformer3DModel",
        "QwenImageTransformer2DModel",
        "SD3Transformer2DModel",
        "SanaTransformer2DModel",
        "WanTransformer3DModel",
        "ZImageTransformer2DModel",
    }
)
DIFFUSION_DENOISERS = frozenset({"CogVideoXTransformer3DModel", "PixArtTransformer2DModel"})


@dataclass(frozen=True, kw_only=True)
class Calls:
    """How a pipeline class calls its sampler."""

    sigmas: Literal["never", "always", "unless_flow"] = "never"  # unless_flow: not where use_flow_sigmas is set
    generator: bool = False  # gives each step the generator, without which its noise follows no seed


_SEEDED = Calls(generator=True)
PIPELINES = {
    "CogVideoXPipeline": _SEEDED,
    "Flux2KleinInpaintPipeline": Calls(sigmas="unless_flow"),
    "Flux2KleinPipeline": Calls(sigmas="unless_flow"),
    "FluxImg2ImgPipeline": Calls(sigmas="always"),
    "FluxInpaintPipeline": Calls(sigmas="always"),
    "FluxKontextInpaintPipeline": Calls(sigmas="always"),
    "FluxKontextPipeline": Calls(sigmas="always"),
    "FluxPipeline": Calls(sigmas="unless_flow"),
    "HunyuanVideoPipeline": Calls(sigmas="always"),
    "IFPipeline": _SEEDED,
    "IFSuperResolutionPipeline": _SEEDED,
    "LTXImageToVideoPipeline": Calls(sigmas="always"),
    "LTXPipeline": Calls(sigmas="always"),
    "PixArtSigmaPipeline": _SEEDED,
    "QwenImageImg2ImgPipeline": Calls(sigmas="always"),
    "QwenImageInpaintPipeline": Calls(sigmas="always"),
    "QwenImagePipeline": Calls(sigmas="always"),
    "SanaPipeline": _SEEDED,
    "StableDiffusion3Img2ImgPipeline": Calls(),
    "StableDiffusion3InpaintPipeline": Calls(),
    "StableDiffusion3Pipeline": Calls(),
    "StableDiffusionControlNetPipeline": _SEEDED,
    "StableDiffusionImg2ImgPipeline": _SEEDED,
    "StableDiffusionInpaintPipeline": _SEEDED,
    "StableDiffusionPipeline": _SEEDED,
    "StableDiffusionUpscalePipeline": _SEEDED,
    "StableDiffusionXLImg2ImgPipeline": _SEEDED,
    "StableDiffusionXLInpaintPipeline": _SEEDED,
    "StableDiffusionXLPipeline": _SEEDED,
    "WanPipeline": Calls(),
    "ZImageImg2ImgPipeline": Calls(sigmas="always"),
    "ZImageInpaintPipeline": Calls(sigmas="always"),
    "ZImagePipeline": Calls(sigmas="always"),
}

# Keys of a scheduler's config that change the noise schedule or the meaning of the denoiser's output, and the values
# at which they change nothing. A class without the argument would drop them without a word.
ESSENTIAL: dict[str, tuple[Any, ...]] = {
    "invert_sigmas": (False,),
    "rescale_betas_zero_snr": (False, None),
    "shift_terminal": (None, 0),
    "snr_shift_scale": (1.0,),
    "trained_betas": (None,),
    "use_dynamic_shifting": (False,),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}


def process_of_model(site: Site) -> Process | None:
    """What the model's denoiser undoes; None where diffopt does not know it."""
    name = site.model.denoiser_class
    if name in FLOW_DENOISERS:
        return "flow"
    return "diffusion" if "UNet" in name or name in DIFFUSION_DENOISERS else None


def process_of_config(class_name: str, config: Mapping[str, Any]) -> Process | None:
    """What the scheduler that a model came with samples, told by its class and config."""
    known = SAMPLERS.get(class_name, Known(process=frozenset())).process
    if config.get("prediction_type") == "flow_prediction" or known == _FLOW:
        return "flow"
    return "diffusion" if "diffusion" in known else "edm" if known else None


def lost(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> list[str]:
    """``key=value`` of what a class with these constructor arguments would drop from the config."""
    return [
        f"{key}={config[key]}"
        for key, neutral in ESSENTIAL.items()
        if key in config and config[key] not in neutral and key not in arguments
    ]
