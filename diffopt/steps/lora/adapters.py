"""A LoRA: low-rank changes of a model's weights from one safetensors file; needs peft (the extra ``lora``).

``path`` and ``swap_path`` only describe: a file counts by its SHA-256, which ``models.lora`` fills in when a recipe is
composed, with the components and the rank that the file's header tells. How layers are loaded, proven and swapped is
in ``layers``, ``proof`` and ``swap``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from diffopt.models import classes
from diffopt.models.lora import lora_file_at_hand
from diffopt.schema.record import Descriptive
from diffopt.schema.step import Effect, Order, Requirements, Site, Step, Trait, register
from diffopt.steps.lora.layers import load_lora_layers
from diffopt.steps.lora.proof import fuse_lora, proof_of_fused_lora, proof_of_live_lora
from diffopt.steps.lora.swap import prepare_lora_swaps, proof_of_lora_swaps

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

File = Annotated[str | None, Descriptive()]
Content = Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None
Told = Annotated[tuple[str, ...] | None, Descriptive()]  # by the file's header
Rank = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^\w+$")]

_PEFT = Requirements(
    packages=("peft>=0.18",),
    install="pip install 'diffopt-toolkit[lora]'",
    evidence="https://huggingface.co/docs/diffusers/main/en/tutorials/using_peft_for_inference",
)


class Lora(Step):
    """The fields that every kind has, and what all of them need; no option by itself."""

    order: ClassVar[Order] = Order.ADAPT
    path: File
    content: Content
    components: Told
    rank: Annotated[Rank | None, Descriptive()]
    scale: float

    def requires(self) -> Requirements:
        return _PEFT

    def problems(self, site: Site) -> tuple[str, ...]:
        return tuple(self._unsuited(site))

    def _unsuited(self, site: Site) -> Iterator[str]:
        model = site.model
        if self.path is None:
            yield "lora.path=null: name the LoRA's file with lora.path=FILE.safetensors"
            return
        if model.cascade:
            yield f"model {model.name} is a cascade, and a LoRA is made for one pipeline; run its stages one by one"
        task = model.task if site.workload is None else site.workload.task
        pipeline = getattr(model.pipelines, task) or getattr(model.pipelines, model.task)
        if classes.pipeline_class_record(str(pipeline)).loras is False:
            yield f"{pipeline} has no load_lora_weights"
        if self.scale == 0:
            yield "lora.scale=0 switches the LoRA off; choose lora=none"
        parts = {"denoiser", model.denoiser, *model.text_encoders}
        if unknown := [name for name in self.components or () if name not in parts]:
            yield f"lora.path: the file changes {', '.join(unknown)}, which model {model.name} does not have"


@register("lora")
class Fused(Lora):
    """Add ``scale`` times the LoRA's change to the weights and drop its layers: what comes after sees plain weights."""

    kind: Literal["fused"]

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        load_lora_layers(pipe, self.path, self.content, kind=self.kind, adapter="diffopt")
        fuse_lora(pipe, adapter="diffopt", scale=self.scale)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        return proof_of_fused_lora(pipe)


@register("lora")
class Live(Lora):
    """Keep the LoRA's layers beside the weights, computed in each call; the pipeline can scale them or switch them off.

    ``adapter`` is the name that diffusers' ``set_adapters`` knows them by.
    """

    kind: Literal["live"]
    adapter: Name

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({Trait.LIVE_LORA})

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        load_lora_layers(pipe, self.path, self.content, kind=self.kind, adapter=self.adapter)
        pipe.set_adapters([self.adapter], [self.scale])

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        return proof_of_live_lora(pipe, self.kind, self.adapter, self.scale)


@register("lora")
class HotSwap(Lora):
    """Live layers that are ready for other files: padded to ``target_rank``, with scales that compiled code reads anew.

    :func:`diffopt.steps.lora.swap.swap_lora` puts another file's weights in their place, without compiling again. Where
    ``swap_path`` names one, ``verify`` swaps it in, draws once, counts what was compiled, and swaps back.
    """

    kind: Literal["hotswap"]
    adapter: Name
    target_rank: Rank | None
    swap_path: File
    swap_content: Content

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({Trait.LIVE_LORA, Trait.HOT_SWAPS})

    def problems(self, site: Site) -> tuple[str, ...]:
        return (*super().problems(site), *self._unswappable(site))

    def _unswappable(self, site: Site) -> Iterator[str]:
        if self.path is None:
            return
        texts = [name for name in self.components or () if name not in ("denoiser", site.model.denoiser)]
        if texts:
            yield f"lora.path: the file changes {', '.join(texts)}, and diffusers swaps layers of the denoiser alone"
        if self.rank is None:
            yield "lora.path: the file holds no pairs of LoRA's matrices, and others cannot be swapped"
        elif self.target_rank is not None and self.target_rank < self.rank:
            yield f"lora.target_rank={self.target_rank}: the file's rank is {self.rank}; take that or more"

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        prepare_lora_swaps(
            pipe,
            self.path,
            self.content,
            denoiser=site.model.denoiser,
            adapter=self.adapter,
            scale=self.scale,
            rank=self._room,
        )

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        second = None if self.swap_path is None else lora_file_at_hand(self.swap_path, self.swap_content)
        return proof_of_lora_swaps(
            pipe, site, self.path, second, adapter=self.adapter, scale=self.scale, rank=self._room
        )

    @property
    def _room(self) -> int | None:
        """The highest rank that can be swapped in."""
        return self.target_rank or self.rank
