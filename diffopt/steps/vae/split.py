"""How the VAE decodes: picture by picture, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from diffopt.errors import NoEffect, Refusal
from diffopt.schema.step import Effect, Order, Site, Step, Trait, register
from diffopt.steps.components import Component, passes_over
from diffopt.steps.vae.decoding import seen_by_vae_step, set_vae_tile, watch_vae_step

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_SMALLEST_TILE = 240  # pixels; the smallest side that a class of diffusers takes by itself (CogVideoX)


@register("vae")
class SplitDecoding(Step):
    """Decode in parts, of which only one has activations in memory at a time.

    ``slicing``: one picture of a batch after the other; the same values. ``tiling``: squares of ``tile`` pixels that
    overlap by the share ``overlap`` and are blended there; each is normalized by itself, so colours may shift between
    tiles. A part that has nothing to divide (one picture, a picture no larger than a tile) is told as idle; where
    nothing at all is divided, the step had no effect.
    """

    order: ClassVar[Order] = Order.LAYOUT
    kind: Literal["split"]
    components: ClassVar[tuple[Component, ...]] = ("vae",)
    slicing: bool
    tiling: bool
    tile: Annotated[int, Field(ge=16)] | None
    overlap: Annotated[float, Field(ge=0, le=0.5)] | None

    @model_validator(mode="after")
    def _something_is_split(self) -> SplitDecoding:
        if not (self.slicing or self.tiling):
            raise ValueError("neither slicing nor tiling is true; choose vae=default for that")
        if not self.tiling and (self.tile is not None or self.overlap is not None):
            raise ValueError("tile and overlap do nothing without tiling=true; set them to null")
        return self

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({Trait.DIVIDES_DECODING})

    def problems(self, site: Site) -> tuple[str, ...]:
        if passes_over(self, site):
            return ()
        if site.model.vae is None:
            return (f"model {site.model.name} has no VAE",)
        idle = list(self._idle_parts(site))
        return (*self._odd_tile(site), *([" and ".join(idle)] if len(idle) == len(self._asked) else []))

    def activation_share(self, working: str, *, batch: int, height: int, width: int) -> float:
        if working != "vae":
            return 1.0
        tile = (self.tile or _SMALLEST_TILE) if self.tiling else max(height, width)
        return min(tile, height) * min(tile, width) / (height * width) / (batch if self.slicing else 1)

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        if passes_over(self, site):
            return
        vae: Any = getattr(pipe, str(site.model.vae))
        for name in self._asked:
            try:
                getattr(vae, f"enable_{name}")()
            except (AttributeError, NotImplementedError) as error:
                raise Refusal(f"vae.{name}: {type(vae).__name__} of {site.model.name} cannot do it") from error
        if self.tiling:
            set_vae_tile(vae, self.tile, self.overlap)
        watch_vae_step(vae)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        vae: Any = getattr(pipe, str(site.model.vae))
        for name in self._asked:
            if not getattr(vae, f"use_{name}", False):
                raise NoEffect(f"vae.{name}: it is switched off in {type(vae).__name__}")
        last = seen_by_vae_step(vae)
        if last is None or not last.calls:
            raise NoEffect("vae: its decoder was never called through decode()")
        idle = [name for name in self._asked if not {"slicing": last.sliced, "tiling": last.tiled}[name]]
        if len(idle) == len(self._asked):
            raise NoEffect(
                f"vae.{' and vae.'.join(idle)}: nothing to divide, the decoder took all {last.pictures} pictures at "
                f"their full size of {last.height} x {last.width} latents; choose a larger batch or size, or a "
                "smaller vae.tile"
            )
        told = f"{last.calls} decoder calls for {last.pictures} pictures of {last.height} x {last.width} latents"
        told += f", each of at most {last.batch} x {last.part_height} x {last.part_width}"
        told += f"; {idle[0]} had nothing to divide" if idle else ""
        return Effect(told, last.numbers())

    @property
    def _asked(self) -> tuple[str, ...]:
        return tuple(name for name in ("slicing", "tiling") if getattr(self, name))

    def _odd_tile(self, site: Site) -> Iterator[str]:
        """A tile that is no whole number of latents; as far as the model's files tell how large they are."""
        factor, tile = site.model.vae_factor, self.tile
        if tile is not None and factor is not None and (tile % factor or tile < 2 * factor):
            near = max(tile // factor, 2) * factor
            yield (
                f"vae.tile={tile}: the VAE of {site.model.name} needs a multiple of {factor}, of {2 * factor} or more "
                f"(such as {near})"
            )

    def _idle_parts(self, site: Site) -> Iterator[str]:
        """What certainly has nothing to divide, as far as the workload tells."""
        workload = site.workload
        if workload is None:
            return
        height, width, later = workload.height, workload.width, False
        if site.cascade:
            stage = site.cascade.index(site.model)
            (height, width), later = site.cascade[0].sizes(height, width)[stage], stage > 0
        if self.slicing and workload.batch_size == 1:
            yield "slicing divides batches, and workload.batch_size is 1"
        elif self.slicing and later:
            yield "slicing divides batches, and a later stage of a cascade scales up the first picture alone"
        binned = site.model.call.use_resolution_binning  # the size decoded may then be larger than the size asked for
        if self.tiling and self.tile is not None and not binned and max(height, width) <= self.tile:
            size = f"{height}x{width}"
            yield f"tiling divides what is larger than vae.tile={self.tile}, and the picture is {size}"
