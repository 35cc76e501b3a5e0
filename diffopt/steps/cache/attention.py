"""Caches between denoising steps that work inside blocks: attention is given again, or extrapolated, in some steps."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from diffopt.errors import Refusal
from diffopt.models import classes
from diffopt.schema.step import Effect, Order, Site, Step, Trait, register
from diffopt.steps.cache.hooks import cached_timestep, install_cache, proof_of_skips
from diffopt.steps.cache.support import cache_step_problems, denoiser_predicts_twice_a_step, too_few_steps_to_cache

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

NOISE = 1000  # the timestep of pure noise


def _holds_some(between: tuple[float, float]) -> tuple[float, float]:
    low, high = between
    if not (low < high and low < NOISE and high > 0):
        raise PydanticCustomError(
            "holds_no_timestep",
            "holds no timestep; give [LOW, HIGH], LOW below HIGH, where {noise} is pure noise and 0 the picture",
            {"noise": NOISE},
        )
    return between


EveryNth = Annotated[int, Field(ge=2)]  # computed once in so many calls
ModulePatterns = Annotated[tuple[str, ...], Field(min_length=1)]  # regular expressions
Timesteps = Annotated[tuple[float, float], AfterValidator(_holds_some)]  # low and high, exclusive
_INSIDE = frozenset({Trait.CACHES, Trait.GRAPH_BREAKS})


@register("cache")
class TaylorSeer(Step):
    """Compute some modules once in ``cache_interval`` steps; in between, extrapolate what they give as a Taylor series.

    In lite mode only the last projection is extrapolated and all blocks before it are skipped. Else the modules are
    those whose whole path matches one of ``cache_identifiers``; those in ``skip_predict_identifiers`` give zeros.
    """

    order: ClassVar[Order] = Order.CACHE
    kind: Literal["taylorseer"]
    cache_interval: EveryNth
    disable_cache_before_step: Annotated[int, Field(ge=1)]
    disable_cache_after_step: Annotated[int, Field(ge=1)] | None
    max_order: Annotated[int, Field(ge=0)]
    taylor_factors_dtype: Literal["float32", "bfloat16", "float16"]
    skip_predict_identifiers: ModulePatterns | None
    cache_identifiers: ModulePatterns | None
    use_lite_mode: bool

    @model_validator(mode="after")
    def _lite_mode_has_its_own_modules(self) -> TaylorSeer:
        if self.use_lite_mode == (self.cache_identifiers is not None):
            raise ValueError("give cache_identifiers, or use_lite_mode with cache_identifiers null: it has its own")
        if self.use_lite_mode and self.skip_predict_identifiers is not None:
            raise ValueError("use_lite_mode skips all blocks, so skip_predict_identifiers must be null")
        return self

    @model_validator(mode="after")
    def _extrapolates_between(self) -> TaylorSeer:
        first, last = self.disable_cache_before_step, self.disable_cache_after_step
        if last is not None and last <= first:
            raise ValueError(
                f"cache.disable_cache_after_step={last}: all steps before cache.disable_cache_before_step={first} are "
                f"computed, and all from this one on, so nothing would be skipped; give {first + 1} or more, or null"
            )
        return self

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({Trait.CACHES, Trait.CACHES_BLOCKS}) if self.use_lite_mode else _INSIDE

    def problems(self, site: Site) -> tuple[str, ...]:
        return cache_step_problems(site, context=True) or too_few_steps_to_cache(site, self.disable_cache_before_step)

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        import torch
        from diffusers import TaylorSeerCacheConfig

        denoiser = getattr(pipe, site.model.denoiser)
        chosen = {"skip_predict_identifiers", "cache_identifiers"}
        config = TaylorSeerCacheConfig(
            **{
                **self.model_dump(exclude={"kind", *chosen}),
                "taylor_factors_dtype": getattr(torch, self.taylor_factors_dtype),
                **{name: _paths(denoiser, getattr(self, name), f"cache.{name}") for name in chosen},
            }
        )
        install_cache(pipe, site, config, key="cache=taylorseer").note_contexts(needed=True)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        first = self.disable_cache_before_step
        remedy = f"take more steps than cache.disable_cache_before_step={first}, or lower it"
        return proof_of_skips(pipe, site, key="cache=taylorseer", unit="module", remedy=remedy)[0]


@register("cache")
class PyramidAttentionBroadcast(Step):
    """Compute attention once in so many steps, and give the same result again in between (PAB).

    Ranges are null where that kind of attention is left alone, and hold between two timesteps.
    """

    order: ClassVar[Order] = Order.CACHE
    kind: Literal["pab"]
    spatial_attention_block_skip_range: EveryNth | None
    temporal_attention_block_skip_range: EveryNth | None
    cross_attention_block_skip_range: EveryNth | None
    spatial_attention_timestep_skip_range: Timesteps
    temporal_attention_timestep_skip_range: Timesteps
    cross_attention_timestep_skip_range: Timesteps
    spatial_attention_block_identifiers: ModulePatterns
    temporal_attention_block_identifiers: ModulePatterns
    cross_attention_block_identifiers: ModulePatterns

    @model_validator(mode="after")
    def _skips_something(self) -> PyramidAttentionBroadcast:
        kinds = ("spatial", "temporal", "cross")
        if all(getattr(self, f"{kind}_attention_block_skip_range") is None for kind in kinds):
            raise ValueError("one of the three block_skip_range must be a number, else nothing is skipped")
        return self

    @property
    def traits(self) -> frozenset[Trait]:
        return _INSIDE

    def problems(self, site: Site) -> tuple[str, ...]:
        return cache_step_problems(site, time=True, one_state=True) or too_few_steps_to_cache(site, 1)

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        from diffusers import PyramidAttentionBroadcastConfig

        settings = self.model_dump(exclude={"kind"})
        config = PyramidAttentionBroadcastConfig(
            **settings, current_timestep_callback=cached_timestep(pipe, key="cache=pab")
        )
        install_cache(pipe, site, config, key="cache=pab").refuse_second_calls(pipe)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        remedy = "widen the cache.*_timestep_skip_range, or take more steps"
        return proof_of_skips(pipe, site, key="cache=pab", unit="attention", remedy=remedy)[0]


@register("cache")
class FasterCache(Step):
    """Extrapolate attention in some steps; where guidance doubles the batch, also guess the prediction without prompt.

    ``is_guidance_distilled: null`` is true where guidance needs no second prediction, ``tensor_format: null`` the
    layout of the denoiser's output; frames are split into frequencies, so it must be made of frames.
    """

    order: ClassVar[Order] = Order.CACHE
    kind: Literal["faster"]
    spatial_attention_block_skip_range: EveryNth
    temporal_attention_block_skip_range: EveryNth | None
    spatial_attention_timestep_skip_range: Timesteps
    temporal_attention_timestep_skip_range: Timesteps
    low_frequency_weight_update_timestep_range: Timesteps
    high_frequency_weight_update_timestep_range: Timesteps
    alpha_low_frequency: float
    alpha_high_frequency: float
    unconditional_batch_skip_range: EveryNth
    unconditional_batch_timestep_skip_range: Timesteps
    spatial_attention_block_identifiers: ModulePatterns
    temporal_attention_block_identifiers: ModulePatterns
    attention_weight: float
    tensor_format: Literal["BCFHW", "BFCHW", "BCHW"] | None
    is_guidance_distilled: bool | None

    @model_validator(mode="after")
    def _computes_the_first_step(self) -> FasterCache:
        for kind in ("spatial", "temporal"):
            name = f"{kind}_attention_timestep_skip_range"
            if getattr(self, name)[1] > 999:
                raise ValueError(f"{name} must end at 999 or below: the first step has nothing to extrapolate from")
        return self

    @property
    def traits(self) -> frozenset[Trait]:
        return _INSIDE | {Trait.CACHES_BLOCKS}  # it also decides around the denoiser, about half of its batch

    def problems(self, site: Site) -> tuple[str, ...]:
        found = cache_step_problems(site, time=True, one_state=True) or too_few_steps_to_cache(site, 1)
        if found or self._distilled(site):
            return found
        if not denoiser_predicts_twice_a_step(site):
            return ("cache.is_guidance_distilled=false, but without guidance the batch has no half to guess",)
        if self._format(site) is None:
            return (f"no layout in frames is known of what {site.model.denoiser_class} gives (cache.tensor_format)",)
        return ()

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        from diffusers import FasterCacheConfig

        if reasons := self.problems(site):
            raise Refusal(f"cache=faster: {'; '.join(reasons)}")
        settings = self.model_dump(exclude={"kind", "attention_weight", "tensor_format", "is_guidance_distilled"})
        config = FasterCacheConfig(
            **settings,
            attention_weight_callback=lambda _: self.attention_weight,
            tensor_format=self._format(site) or "BCHW",  # not looked at where guidance needs no second prediction
            is_guidance_distilled=self._distilled(site),
            current_timestep_callback=cached_timestep(pipe, key="cache=faster"),
        )
        install_cache(pipe, site, config, key="cache=faster").refuse_second_calls(pipe)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        remedy = "widen the cache.*_timestep_skip_range, or take more steps"
        return proof_of_skips(pipe, site, key="cache=faster", unit="attention", remedy=remedy)[0]

    def _distilled(self, site: Site) -> bool:
        return (
            not denoiser_predicts_twice_a_step(site)
            if self.is_guidance_distilled is None
            else self.is_guidance_distilled
        )

    def _format(self, site: Site) -> str | None:
        return self.tensor_format or classes.denoiser_class_record(site.model.denoiser_class).caches.frames


def _paths(denoiser: Any, expressions: tuple[str, ...] | None, key: str) -> list[str] | None:
    """Expressions for exactly the modules whose paths match, with or without the compiler's part of their names.

    Raises Refusal where one of them matches nothing: diffusers would install nothing for it and say nothing.
    """
    if expressions is None:
        return None
    names = [name for name, _ in denoiser.named_modules() if not name.endswith("._orig_mod")]
    plain = {name: name.replace("_orig_mod.", "") for name in names}
    matched = {words: {name for name in names if re.fullmatch(words, plain[name])} for words in expressions}
    if idle := [words for words, found in matched.items() if not found]:
        raise Refusal(f"{key}={idle}: no module of {type(denoiser).__name__} has such a path")
    return [re.escape(name) for name in names if any(name in found for found in matched.values())]
