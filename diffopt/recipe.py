"""The recipe: everything that decides a pipeline. Frozen data; reads no file, probes nothing, imports no torch."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

import diffopt.steps  # noqa: F401  (registers the steps that the fields below are made of)
from diffopt.step import Descriptive, Frozen, OneOf, Step, identity

Dtype = Literal["float32", "float16", "bfloat16"]
Positive = Annotated[int, Field(ge=1)]


class Pipelines(Frozen):
    """diffusers' pipeline class for each task that the model can do; ``None`` where it cannot."""

    txt2img: str | None


class Limits(Frozen):
    """What is known to go wrong with this model, as data."""

    fp16_vae_overflows: bool  # the VAE decodes to black in float16; it then runs in float32


class Model(Frozen):
    """Which pipeline is loaded, from where, and how it is customarily called."""

    name: str
    id: str | None  # hub id
    revision: str | None  # a commit SHA; "main" is unpinned
    variant: str | None  # file variant on the hub, such as "fp16"
    path: Annotated[str | None, Descriptive()]  # local folder in the Hugging Face layout; what counts is its content
    architecture: str | None  # folder of diffopt/models: component configs, and for `tiny` the weights too
    content: str | None  # SHA-256 of the local files that make the model; filled in when the recipe is composed
    weights: Literal["pretrained", "random"]
    pipelines: Pipelines
    denoiser: str  # attribute of the pipeline, "unet" or "transformer"
    denoiser_class: str
    vae: str | None  # attribute of the pipeline
    text_encoders: tuple[str, ...]  # attributes of the pipeline
    head_sizes: Annotated[
        tuple[Positive, ...], Descriptive()
    ]  # channels per attention head of the denoiser, each once; kernels have limits
    vae_head_size: Annotated[
        Positive | None, Descriptive()
    ]  # channels of the VAE's one head; None where it has no attention, or not known
    size_multiple: Positive  # height and width must be multiples of this, in pixels
    height: Annotated[Positive, Descriptive()]  # customary, as are the next three: what a workload leaves open, in ids
    width: Annotated[Positive, Descriptive()]  # with the value that it came to
    steps: Annotated[Positive, Descriptive()]
    guidance: Annotated[float, Field(ge=0), Descriptive()]
    prompt: Annotated[str, Descriptive()]  # customary, likewise
    dtype: Annotated[Dtype, Descriptive()]  # customary precision: what the reference runs in
    parameters: Annotated[int | None, Descriptive()]  # of all components together; None where not known
    limits: Limits

    @property
    def pinned(self) -> bool:
        """Whether the same recipe will load the same weights for ever."""
        return self.content is not None or (self.revision is not None and len(self.revision) == 40)


class PeakTflops(Frozen):
    """Dense peak per computing precision in TFLOP/s (TOP/s for int8), from the vendor's data sheet; None: not known."""

    fp32: float | None
    tf32: float | None
    fp16: float | None
    bf16: float | None
    fp8: float | None
    int8: float | None


class Slurm(Frozen):
    """How a Slurm cluster customarily names this GPU."""

    constraint: str | None
    gres: str | None


class Hardware(Frozen):
    """The device that the recipe is for; facts of the data sheet, none of this machine."""

    name: str
    device: Literal["cuda", "cpu"]
    match: Annotated[tuple[str, ...], Descriptive()]  # this GPU when NVML's name contains one of these
    compute_capability: tuple[int, int] | None
    sms: Annotated[int | None, Descriptive()]  # streaming multiprocessors
    memory_gib: Annotated[float | None, Descriptive()]  # as NVML reports it, a little less than its name says
    bandwidth_gb_s: Annotated[float | None, Descriptive()]
    peak_tflops: Annotated[PeakTflops, Descriptive()]
    slurm: Annotated[Slurm, Descriptive()]
    ray_accelerator: Annotated[str | None, Descriptive()]


class Recipe(Frozen):
    """A model, a device, and one step per optimization group. Field order is the order of the groups everywhere."""

    model: Model
    hardware: Hardware
    precision: Annotated[Step, OneOf("precision")]
    memory: Annotated[Step, OneOf("memory")]
    fuse: Annotated[Step, OneOf("fuse")]
    quant: Annotated[Step, OneOf("quant")]
    attention: Annotated[Step, OneOf("attention")]
    layout: Annotated[Step, OneOf("layout")]
    scheduler: Annotated[Step, OneOf("scheduler")]
    compile: Annotated[Step, OneOf("compile")]

    @property
    def steps(self) -> tuple[tuple[str, Step], ...]:
        """``(group, step)`` of everything that is done to the pipeline, in the order it is done."""
        chosen = [(group, getattr(self, group)) for group in STEP_GROUPS]
        return tuple(sorted((pair for pair in chosen if pair[1].kind != "none"), key=lambda pair: pair[1].order))

    @cached_property
    def id(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical YAML, without what only describes."""
        return digest(identity(self))


STEP_GROUPS = tuple(name for name in Recipe.model_fields if name not in ("model", "hardware"))


def digest(data: dict[str, Any]) -> str:
    """The id of plain data: first 12 hex digits of the SHA-256 of its canonical YAML.

    Canonical is YAML's flow style with sorted keys, which is JSON: one spelling for everything, on every machine.
    """
    canonical = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
