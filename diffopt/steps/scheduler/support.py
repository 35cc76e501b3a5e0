"""What diffusers' samplers can sample, as data, so that a plan needs no torch.

Read in diffusers 0.42.1; tests/steps/scheduler/test_sampler.py compares it with what is installed. Of OTHERS only the
names are known: they are let through here and looked at when the sampler is put in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffopt.models import classes
from diffopt.models.classes import Process, SamplerCalls

if TYPE_CHECKING:
    from diffopt.schema.step import Site

NAMES: dict[Process, str] = {"diffusion": "diffusion", "flow": "flow matching", "edm": "EDM"}
SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")  # of sigmas; one of them at most


@dataclass(frozen=True, kw_only=True)
class Known:
    """One class of sampler."""

    takes: frozenset[str]  # of the settings of a sampler and of ESSENTIAL: its constructor's arguments
    ignores: tuple[str, ...] = ()  # of these, what no line of it reads
    algorithms: tuple[str, ...] = ()  # values of algorithm_type that stay what they are
    process: frozenset[Process] = frozenset({"diffusion"})
    sigmas: bool = False  # set_timesteps takes the sigmas that a pipeline gives
    noise: bool = False  # draws noise in every step
    twice: bool = False  # has the denoiser called twice in each step but the last
    waits: bool = False  # every step waits for the device, wherever its schedule lies
    pipelines: str = ""  # made for these alone: the beginning of their names
    packages: tuple[str, ...] = ()
    gives: frozenset[str] = frozenset()  # of what pipelines ask for (SamplerCalls.asks)

    @property
    def solves_both(self) -> bool:
        """Whether use_flow_sigmas decides what it samples."""
        return {"diffusion", "flow"} <= self.process


_FLOW: frozenset[Process] = frozenset({"flow"})
_BOTH: frozenset[Process] = frozenset({"diffusion", "flow"})
_EDM: frozenset[Process] = frozenset({"edm"})
_BETAS = frozenset({"timestep_spacing", "trained_betas"})
_CLIPS = _BETAS | {"clip_sample"}
_ZERO_SNR = frozenset({"rescale_betas_zero_snr"})
_SPACED = frozenset(SPACINGS)
_SOLVER = _BETAS | _SPACED | {"algorithm_type", "flow_shift", "use_flow_sigmas"}
_ORDERS = frozenset({"solver_order", "use_dynamic_shifting"})
_LAST = frozenset({"final_sigmas_type"})
_COGVIDEOX = _CLIPS | _ZERO_SNR | {"snr_shift_scale"}
_SHIFTS = _SPACED | {"invert_sigmas", "shift", "shift_terminal", "use_dynamic_shifting"}
_DPM = ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver")
_DENOISED = frozenset({"denoised"})
SPARSE = frozenset({"original_inference_steps"})
DISTILLED = 50  # the default of that argument, and of the config
SAMPLERS = {
    "CogVideoXDDIMScheduler": Known(takes=_COGVIDEOX, ignores=("clip_sample",), pipelines="CogVideoX", gives=_DENOISED),
    "CogVideoXDPMScheduler": Known(
        takes=_COGVIDEOX, ignores=("clip_sample",), pipelines="CogVideoX", noise=True, gives=_DENOISED
    ),
    "DDIMParallelScheduler": Known(takes=_CLIPS | _ZERO_SNR, gives=_DENOISED),
    "DDIMScheduler": Known(takes=_CLIPS | _ZERO_SNR, gives=_DENOISED),
    "DDPMScheduler": Known(takes=_CLIPS | _ZERO_SNR | {"variance_type"}, noise=True, gives=_DENOISED),
    "DEISMultistepScheduler": Known(takes=_SOLVER | _ORDERS, algorithms=("deis",), process=_BOTH),
    "DPMSolverMultistepScheduler": Known(
        takes=_SOLVER | _ORDERS | _LAST | _ZERO_SNR | {"variance_type"}, algorithms=_DPM, process=_BOTH
    ),
    "DPMSolverSDEScheduler": Known(
        takes=_BETAS | _SPACED, noise=True, twice=True, packages=("torchsde",), gives=_DENOISED
    ),
    "DPMSolverSinglestepScheduler": Known(
        takes=(_SOLVER | _ORDERS | _LAST | {"variance_type"}) - {"timestep_spacing"}, algorithms=_DPM[:3], process=_BOTH
    ),
    "EDMDPMSolverMultistepScheduler": Known(
        takes=_LAST | {"algorithm_type", "solver_order"}, algorithms=_DPM[:2], process=_EDM
    ),
    "EDMEulerScheduler": Known(takes=_LAST, process=_EDM, sigmas=True, gives=_DENOISED),
    "EulerAncestralDiscreteScheduler": Known(takes=_BETAS | _ZERO_SNR, noise=True, gives=_DENOISED),
    "EulerDiscreteScheduler": Known(takes=_BETAS | _SPACED | _LAST | _ZERO_SNR, sigmas=True, gives=_DENOISED),
    "FlowMatchEulerDiscreteScheduler": Known(takes=_SHIFTS, process=_FLOW, sigmas=True),
    "FlowMatchHeunDiscreteScheduler": Known(takes=frozenset({"shift"}), process=_FLOW, twice=True),
    "FlowMatchLCMScheduler": Known(takes=_SHIFTS, process=_FLOW, sigmas=True, noise=True),
    "HeunDiscreteScheduler": Known(takes=_CLIPS | _SPACED, twice=True, gives=_DENOISED),
    "KDPM2AncestralDiscreteScheduler": Known(takes=_BETAS | _SPACED, noise=True, twice=True, gives=_DENOISED),
    "KDPM2DiscreteScheduler": Known(takes=_BETAS | _SPACED, twice=True, gives=_DENOISED),
    "LCMScheduler": Known(
        takes=_CLIPS | _ZERO_SNR, ignores=("timestep_spacing",), noise=True, gives=_DENOISED | SPARSE
    ),
    "LMSDiscreteScheduler": Known(takes=_BETAS | _SPACED, packages=("scipy",), gives=_DENOISED),
    "LTXEulerAncestralRFScheduler": Known(takes=frozenset(), process=_FLOW, sigmas=True, noise=True, waits=True),
    "PNDMScheduler": Known(takes=_BETAS | {"skip_prk_steps"}),
    "SASolverScheduler": Known(
        takes=_SOLVER | {"variance_type"}, algorithms=("data_prediction", "noise_prediction"), process=_BOTH, noise=True
    ),
    "TCDScheduler": Known(
        takes=_CLIPS | _ZERO_SNR, ignores=("clip_sample", "timestep_spacing"), noise=True, gives=SPARSE
    ),
    # copies sigmas to the device and solves a small linear system there
    "UniPCMultistepScheduler": Known(
        takes=(_SOLVER | _ORDERS | _LAST | _ZERO_SNR | {"shift_terminal"}) - {"algorithm_type"},
        process=_BOTH,
        sigmas=True,
        waits=True,
    ),
}

# diffusers' other samplers, for pipelines of their own. What is in neither list is not there to be put in.
OTHERS = frozenset(
    {
        "AmusedScheduler",
        "BlockRefinementScheduler",
        "CMStochasticIterativeScheduler",
        "ConsistencyDecoderScheduler",
        "CosineDPMSolverMultistepScheduler",
        "DDIMInverseScheduler",
        "DDPMParallelScheduler",
        "DDPMWuerstchenScheduler",
        "DPMSolverMultistepInverseScheduler",
        "DiscreteDDIMScheduler",
        "EntropyBoundScheduler",
        "FlowMapEulerDiscreteScheduler",
        "HeliosDMDScheduler",
        "HeliosScheduler",
        "IPNDMScheduler",
        "KarrasVeScheduler",
        "MiniMaxH3Scheduler",
        "PiflowScheduler",
        "RFD4ProteinaScheduler",
        "RePaintScheduler",
        "SCMScheduler",
        "ScoreSdeVeScheduler",
        "ScoreSdeVpScheduler",
        "UnCLIPScheduler",
        "VQDiffusionScheduler",
    }
)


def sampler_lacks_in_words(lacking: Sequence[str], calls: SamplerCalls) -> str:
    """What a pipeline asks of its sampler in vain, and which samplers have it."""
    able = [name for name, known in SAMPLERS.items() if known.gives.issuperset(calls.asks)]
    words = ["draws the denoised latents of a step, which this one does not give"] if "denoised" in lacking else []
    if arguments := [asked for asked in lacking if asked != "denoised"]:
        words.append(f"gives its sampler {' and '.join(arguments)}, which this one does not take")
    return f"{' and '.join(words)}; {', '.join(able) or 'only its own sampler'} does"


def scheduler_process_of_model(site: Site) -> Process | None:
    """What the model's denoiser undoes; None where diffopt does not know it."""
    return classes.denoiser_class_record(site.model.denoiser_class).process


def scheduler_process_of_config(class_name: str, config: Mapping[str, Any]) -> Process | None:
    """What the scheduler that a model came with samples, told by its class and config."""
    known = SAMPLERS.get(class_name)
    if config.get("prediction_type") == "flow_prediction" or (known is not None and known.process == _FLOW):
        return "flow"
    return None if known is None else "diffusion" if "diffusion" in known.process else "edm"
