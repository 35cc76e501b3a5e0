"""Caches between denoising steps that skip blocks: what they gave is used again where it hardly changes.

All caches are diffusers' hooks on its transformers; UNets have none. They change the picture, and how much depends on
model, steps and settings, so look at the pictures. The fields have diffusers' names. Caches of attention are in
``attention.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from diffopt.errors import NoEffect, Refusal
from diffopt.models import classes
from diffopt.schema.step import Effect, Order, Site, Step, Trait, register
from diffopt.steps.cache.hooks import install_cache, keep_mag_cache_ratios, proof_of_skips
from diffopt.steps.cache.support import (
    cache_step_problems,
    denoiser_predicts_twice_a_step,
    iterations_for_cache,
    too_few_steps_to_cache,
)

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Threshold = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
_UNLIKE = "its first and last block give different things, and this cache cannot subtract them"
_TRAITS = frozenset({Trait.CACHES, Trait.CACHES_BLOCKS})


@register("cache")
class FirstBlock(Step):
    """Compute the first block; where its residual changed by less than ``threshold``, skip all others.

    What they added in the last full step is added again. The comparison waits for the device once per step.
    """

    order: ClassVar[Order] = Order.CACHE
    kind: Literal["first_block"]
    threshold: Threshold

    @property
    def traits(self) -> frozenset[Trait]:
        return _TRAITS

    def problems(self, site: Site) -> tuple[str, ...]:
        if classes.denoiser_class_record(site.model.denoiser_class).caches.one_sequence_later:
            return (f"{site.model.denoiser_class}: {_UNLIKE}",)
        return cache_step_problems(site, context=True) or too_few_steps_to_cache(site, 1)

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        from diffusers import FirstBlockCacheConfig

        watch = install_cache(pipe, site, FirstBlockCacheConfig(threshold=self.threshold), key="cache=first_block")
        if len({one.hook._metadata.return_encoder_hidden_states_index is None for one in watch.hooked}) > 1:
            raise Refusal(f"cache=first_block: {type(getattr(pipe, site.model.denoiser)).__name__}: {_UNLIKE}")
        watch.note_contexts(needed=True)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        return proof_of_skips(pipe, site, key="cache=first_block", unit="block", remedy=_raise(self.threshold))[0]


@register("cache")
class Mag(Step):
    """Skip all blocks while the error that measured magnitude ratios let expect stays below ``threshold``.

    The ratios say how much the residual of all blocks grows from step to step; they belong to a checkpoint and a
    sampler. With ``calibrate`` nothing is skipped, and the effect tells them. ``mag_ratios: null`` is diffusers' table
    for FLUX.1, ``num_inference_steps: null`` what the workload runs.
    """

    order: ClassVar[Order] = Order.CACHE
    kind: Literal["mag"]
    threshold: Threshold
    max_skip_steps: Annotated[int, Field(ge=1)]
    retention_ratio: Annotated[float, Field(ge=0, le=1)]
    num_inference_steps: Annotated[int, Field(ge=1)] | None
    mag_ratios: Annotated[tuple[float, ...], Field(min_length=1)] | None
    calibrate: bool

    @model_validator(mode="after")
    def _measures_or_uses(self) -> Mag:
        if self.calibrate and self.mag_ratios is not None:
            raise ValueError("calibrate measures the ratios, so mag_ratios must be null")
        return self

    @property
    def traits(self) -> frozenset[Trait]:
        return _TRAITS | {Trait.COUNTS_STEPS} if self.num_inference_steps is None else _TRAITS

    def problems(self, site: Site) -> tuple[str, ...]:
        found = cache_step_problems(site, context=denoiser_predicts_twice_a_step(site))
        known = (
            self.mag_ratios is not None or classes.denoiser_class_record(site.model.denoiser_class).caches.magnitudes
        )
        if not found and not known and not self.calibrate:
            measure = "measure them with cache=mag_calibrate and give them as cache.mag_ratios"
            found += (f"no magnitude ratios of {site.model.name} are known: {measure}",)
        if self.num_inference_steps is None and site.workload is None:
            found += ("without a workload, cache.num_inference_steps must be given",)
        retained = 0 if self.calibrate else max(int(self.retention_ratio * self._steps(site) + 0.5), 1)
        return found or self._miscounted(site) or too_few_steps_to_cache(site, retained)

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS, MagCacheConfig

        if reasons := self.problems(site):
            raise Refusal(f"cache=mag: {'; '.join(reasons)}")
        ratios: Any = FLUX_MAG_RATIOS if self.mag_ratios is None else [*self.mag_ratios]
        config = MagCacheConfig(
            threshold=self.threshold,
            max_skip_steps=self.max_skip_steps,
            retention_ratio=self.retention_ratio,
            num_inference_steps=self._steps(site),
            mag_ratios=None if self.calibrate else ratios,
            calibrate=self.calibrate,
        )
        watch = install_cache(pipe, site, config, key="cache=mag")
        watch.note_contexts(needed=denoiser_predicts_twice_a_step(site))
        if self.calibrate:
            keep_mag_cache_ratios(watch)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        remedy = None if self.calibrate else _raise(self.threshold)
        effect, tally = proof_of_skips(pipe, site, key="cache=mag", unit="block", remedy=remedy)
        ran = tally.called / int(effect.numbers["hooks"]) / len(tally.contexts)  # one hook on each block
        if ran != self._steps(site):
            raise NoEffect(f"cache=mag: it counts {self._steps(site)} steps, but {ran:g} ran; "
                           f"set cache.num_inference_steps={ran:g}")  # fmt: skip
        if not self.calibrate:
            return effect
        measured = {f"ratios_{name}": ", ".join(f"{r:.5f}" for r in row) for name, row in tally.ratios.items()}
        if not measured:
            raise NoEffect("cache=mag_calibrate: no magnitude ratio was measured")
        return Effect(f"magnitude ratios of {ran:g} steps measured, nothing skipped", {**effect.numbers, **measured})

    def _miscounted(self, site: Site) -> tuple[str, ...]:
        """A number that no sampler makes of the workload's: one has the denoiser called once more than that, others
        twice in each step but the last."""
        given, ran = self.num_inference_steps, None if site.workload is None else iterations_for_cache(site.workload)
        if given is None or ran is None or given in (ran, ran + 1, 2 * ran - 1):
            return ()
        return (
            f"cache.num_inference_steps={given}: the workload runs {ran} steps; set it to null, or to {2 * ran - 1} "
            "with a sampler that calls the denoiser twice in a step",
        )

    def _steps(self, site: Site) -> int:
        return self.num_inference_steps or (iterations_for_cache(site.workload) if site.workload is not None else 0)


@register("cache")
class Sea(Step):
    """Skip all blocks while the picture, filtered by what the noise lets show, changes by less than ``threshold``."""

    order: ClassVar[Order] = Order.CACHE
    kind: Literal["sea"]
    threshold: Threshold
    residual_order: Literal[0, 1]
    retention_steps: Count
    cache_end_steps: Count
    max_consecutive_cached: Count
    power_exp: Annotated[float, Field(gt=0)]

    @property
    def traits(self) -> frozenset[Trait]:
        return _TRAITS

    def problems(self, site: Site) -> tuple[str, ...]:
        return cache_step_problems(site, context=True, step=True) or too_few_steps_to_cache(
            site, max(self.retention_steps, 1) + self.cache_end_steps
        )

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        from diffusers import SeaCacheConfig

        install_cache(pipe, site, SeaCacheConfig(**self.model_dump(exclude={"kind"})), key="cache=sea")

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        return proof_of_skips(pipe, site, key="cache=sea", unit="block", remedy=_raise(self.threshold))[0]


def _raise(threshold: float) -> str:
    return f"raise cache.threshold, which is {threshold:g}, or take more steps"
