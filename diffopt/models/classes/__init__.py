"""What diffusers' classes of denoisers, VAEs and pipelines are to diffopt: one frozen record per class. No torch.

They were read in diffusers 0.42.1; tests compare them with what is installed. A record answers every field, and what a
class without a record means is said here alone, by the ``UNKNOWN`` records.
"""

from __future__ import annotations

from diffopt.models.classes.denoisers import (
    DENOISERS,
    UNKNOWN_DENOISER,
    UNKNOWN_OTHER_UNET,
    UNKNOWN_UNET,
    Denoiser,
    Process,
)
from diffopt.models.classes.families import FAMILIES, Family
from diffopt.models.classes.pipelines import PIPELINES, UNKNOWN_PIPELINE, Pipeline, SamplerCalls
from diffopt.models.classes.several import SEVERAL
from diffopt.models.classes.vaes import UNKNOWN_VAE, VAES, Vae

__all__ = [
    "DENOISERS",
    "FAMILIES",
    "PIPELINES",
    "SEVERAL",
    "UNKNOWN_DENOISER",
    "UNKNOWN_OTHER_UNET",
    "UNKNOWN_PIPELINE",
    "UNKNOWN_UNET",
    "UNKNOWN_VAE",
    "VAES",
    "Denoiser",
    "Family",
    "Pipeline",
    "Process",
    "SamplerCalls",
    "Vae",
    "denoiser_class_record",
    "pipeline_class_record",
    "vae_class_record",
]


def denoiser_class_record(class_name: str) -> Denoiser:
    """The record of a denoiser's class; of an unknown one what its name tells, and else nothing."""
    known = DENOISERS.get(class_name)
    if known is not None:
        return known
    if class_name.startswith("UNet"):
        return UNKNOWN_UNET
    return UNKNOWN_OTHER_UNET if "UNet" in class_name else UNKNOWN_DENOISER


def vae_class_record(class_name: str | None) -> Vae:
    """The record of a VAE's class; ``None``: which one it is, is not known."""
    return UNKNOWN_VAE if class_name is None else VAES.get(class_name, UNKNOWN_VAE)


def pipeline_class_record(class_name: str) -> Pipeline:
    """The record of a pipeline's class."""
    return PIPELINES.get(class_name, UNKNOWN_PIPELINE)
