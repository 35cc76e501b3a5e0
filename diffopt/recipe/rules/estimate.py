"""Whether a pipeline fits: the bytes that it needs on the device at its worst moment, from data alone. No torch.

The estimate is a lower bound, so that what it refuses cannot work. It assumes:

- All weights of a part (denoiser, text encoders, VAE) take what the precision step loads them in. From the quantizing
  step on all weights of its components take its bytes, also those that it leaves as they are (norms, convolutions).
- Weights are on the device in their loaded size before a step that comes after placing quantizes them there.
- Activations are the values that the model option gives, which were counted for one picture at the customary size, in
  the precision that the part is loaded in. They grow in proportion to the batch, the pixels and the frames of the
  workload, and halve where the workload's guidance needs no second half of the batch. Where they are not known: none.
- Text encoders' activations are less than the others', as are the encoder's of a VAE.
- Attention keeps no score matrix. ``attention=vanilla`` does, and needs far more than is said here.
- Nothing else: no CUDA context (about half a GiB), no workspaces of cuDNN and cuBLAS, no holes between blocks, no
  second copy of fused projections, no CUDA graphs' private pools, no autotuning, no buffers of modules.
- The weights of all stages of a cascade are there together; one stage works at a time, the later ones on one picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from diffopt.machine.hardware import GIB
from diffopt.models import classes
from diffopt.recipe.cell import Cell
from diffopt.recipe.recipe import Recipe
from diffopt.schema.model import Model
from diffopt.schema.step import Order, Site

PARTS = ("denoiser", "text_encoders", "vae")
NOTED = 0.9  # of the device's memory; what is not counted needs some too


@dataclass(frozen=True)
class Estimate:
    """The worst moment of a pipeline's life on its device, in bytes."""

    moment: Literal["loading", "encoding the prompt", "denoising", "decoding"]
    weights: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.activations

    def __str__(self) -> str:
        if not self.activations:
            return f"{_gib(self.total)} GiB of weights while {self.moment}"
        parts = f"{_gib(self.weights)} of weights + {_gib(self.activations)} of activations"
        return f"{_gib(self.total)} GiB while {self.moment}: {parts}"


def estimate_memory_of_cell(cell: Cell) -> Estimate | None:
    """What ``cell`` needs at least; None where the model's parameters or the bytes of a weight are not known."""
    moments = list(_moments(cell))
    return max(moments, key=lambda moment: moment.total, default=None)


def estimated_denoiser_batch(model: Model, guidance: float) -> int:
    """Batch of one call of the denoiser for one picture: 2 where guidance puts both halves into one call."""
    doubled = (
        guidance > 1
        and not model.embedded_guidance
        and not classes.denoiser_class_record(model.denoiser_class).guides_apart
    )
    return 2 if doubled else 1


@dataclass(frozen=True)
class _Asked:
    """What one stage is asked for: pictures per call, their size in pixels, frames, and guidance."""

    batch: int
    height: int
    width: int
    frames: int
    guidance: float


@dataclass(frozen=True)
class _Stage:
    """One pipeline of a cell, with the bytes of its parts: as they are placed, and as they stay."""

    model: Model
    asked: _Asked
    placed: Mapping[str, float]
    settled: Mapping[str, float]
    computing: Mapping[str, float]  # bytes of one activation, by part


def _moments(cell: Cell) -> Iterator[Estimate]:
    """Every moment that may be the worst; none where something indispensable is not known."""
    recipe = cell.recipe
    stages = [_stage(recipe, site, asked) for site, asked in zip(cell.sites, _asked(cell), strict=False)]
    known = [stage for stage in stages if stage is not None]
    if len(known) < len(stages):
        return
    keep = recipe.memory.on_device
    yield Estimate("loading", round(sum(keep(stage.placed, None) for stage in known)), 0)
    for stage in known:
        others = sum(keep(other.settled, None) for other in known if other is not stage)
        counted = stage.model.activations
        encoding, denoising, decoding = (
            round(others + keep(stage.settled, part)) for part in ("text_encoders", "denoiser", "vae")
        )
        yield Estimate("encoding the prompt", encoding, 0)
        yield Estimate("denoising", denoising, _activations(recipe, stage, "denoiser", counted.denoise))
        yield Estimate("decoding", decoding, _activations(recipe, stage, "vae", counted.decode))


def _stage(recipe: Recipe, site: Site, asked: _Asked) -> _Stage | None:
    parameters, computing = site.model.parameters, _weight_bytes(recipe, site, Order.LOAD)
    if parameters.denoiser is None or len(computing) < len(PARTS):
        return None

    def parts(last: Order) -> dict[str, float]:
        each = _weight_bytes(recipe, site, last)
        return {part: (getattr(parameters, part) or 0) * each[part] for part in PARTS}

    return _Stage(site.model, asked, parts(recipe.memory.order), parts(max(Order)), computing)


def _weight_bytes(recipe: Recipe, site: Site, last: Order) -> dict[str, float]:
    """Bytes of a weight by part, after all steps up to the order ``last``."""
    found: dict[str, float] = {}
    for _, step in recipe.steps:
        if step.order <= last:
            told = {part: step.weight_bytes(part, site) for part in PARTS}
            found |= {part: each for part, each in told.items() if each is not None}
    return found


def _asked(cell: Cell) -> Iterator[_Asked]:
    """What each stage is asked for; a later one scales up one picture of the one before it, or of the first."""
    workload = cell.workload
    size, *later = cell.recipe.model.sizes(workload.height, workload.width)
    yield _Asked(workload.batch_size, *size, workload.frames or 1, workload.guidance)
    for size, called in zip(later, workload.later_stages, strict=False):
        yield _Asked(1, *size, 1, called.guidance)


def _activations(recipe: Recipe, stage: _Stage, part: str, customary: int | None) -> int:
    """Bytes of the activations of ``part``, in proportion to what is customary."""
    model, asked, counted = stage.model, stage.asked, stage.model.activations
    pixels = asked.height * asked.width / ((counted.height or model.height) * (counted.width or model.width))
    frames = asked.frames / (counted.frames or model.frames or 1)
    guidance = model.guidance if counted.guidance is None else counted.guidance
    halves = (
        estimated_denoiser_batch(model, asked.guidance) / estimated_denoiser_batch(model, guidance)
        if part == "denoiser"
        else 1
    )
    share = prod(
        step.activation_share(part, batch=asked.batch, height=asked.height, width=asked.width)
        for _, step in recipe.steps
    )
    return round((customary or 0) * asked.batch * pixels * frames * halves * share * stage.computing[part])


def _gib(count: int) -> str:
    return f"{count / GIB:.1f}"
