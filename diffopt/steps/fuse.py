"""Fused projections: query, key and value from one matrix product."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from diffopt.components import DiffusersComponents, missing, modules
from diffopt.errors import NoEffect, Refusal
from diffopt.step import Effect, Order, Site, Step, Trait, register

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn


@register("fuse")
class QKV(Step):
    """Concatenate the projections: q, k, v of self-attention, k and v of cross-attention.

    diffusers also installs a processor that reads the fused matrix. A stock processor set later would go back to the
    separate ones without a word, so ``verify`` looks at the processors too. The separate weights stay in memory.
    """

    order: ClassVar[Order] = Order.FUSE
    kind: Literal["qkv"]
    components: DiffusersComponents

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({Trait.FUSES_QKV})

    def problems(self, site: Site) -> tuple[str, ...]:
        return missing(site, self.components, "fuse.components")

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        for name, module in modules(pipe, site, self.components, "fuse.components").items():
            fuse = getattr(module, "fuse_qkv_projections", None)
            if fuse is None:
                raise Refusal(f"fuse=qkv: {name} ({type(module).__name__}) has no fuse_qkv_projections")
            try:
                fuse()
            except ValueError as error:  # attention with added key and value projections
                raise Refusal(f"fuse=qkv: {name}: {error}") from error

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        numbers: dict[str, int | float | str] = {}
        for name, module in modules(pipe, site, self.components, "fuse.components").items():
            attentions = _attentions(module)
            unused = [path for path, attention in attentions.items() if not _fused(attention)]
            if not attentions or len(unused) == len(attentions):
                raise NoEffect(f"fuse=qkv: none of the {len(attentions)} attention modules of {name} is fused")
            if unused:
                raise NoEffect(f"fuse=qkv: {len(unused)} attention modules of {name} ignore it, such as {unused[0]}")
            numbers[name] = len(attentions)
        counts = ", ".join(f"{count} attention modules of {name}" for name, count in numbers.items())
        return Effect(f"{counts} fused", numbers)


def _attentions(module: nn.Module) -> dict[str, nn.Module]:
    """Attention modules that have projections to fuse, by path."""
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import Attention

    return {
        path: part
        for path, part in module.named_modules()
        if isinstance(part, Attention) or (isinstance(part, AttentionModuleMixin) and part._supports_qkv_fusion)
    }


def _fused(attention: nn.Module) -> bool:
    """Whether the fused matrix exists and the processor in place reads it."""
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import FusedAttnProcessor2_0

    from diffopt.steps.unet_attention import DispatchAttnProcessor

    has_matrix = hasattr(attention, "to_qkv") or hasattr(attention, "to_kv")
    reads_it = isinstance(attention, AttentionModuleMixin) or isinstance(
        attention.processor, (FusedAttnProcessor2_0, DispatchAttnProcessor)
    )
    return bool(getattr(attention, "fused_projections", False)) and has_matrix and reads_it
