"""Fused projections: query, key and value from one matrix product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from diffopt.errors import NoEffect, Refusal
from diffopt.models import classes
from diffopt.schema.step import Effect, Order, Site, Step, Trait, register
from diffopt.steps.attention.processors import attention_modules, fused_processors, reads_fused_projections
from diffopt.steps.components import DiffusersComponents, attributes, missing, modules

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn


@register("fuse")
class QKV(Step):
    """Concatenate the projections: q, k, v of self-attention, k and v of cross-attention.

    Module by module, since ``fuse_qkv_projections`` of diffusers passes over ControlNets, Stable Diffusion 3 and others
    without a word, and says nothing where a processor goes on with the separate projections. What cannot be fused is
    left, and the effect says why; where nothing can, the step is refused. The separate weights stay in memory.
    """

    order: ClassVar[Order] = Order.FUSE
    kind: Literal["qkv"]
    components: DiffusersComponents

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({Trait.FUSES_QKV})

    def problems(self, site: Site) -> tuple[str, ...]:
        lacking = missing(site, self.components, "fuse.components")
        if len(lacking) == len(self.components):
            return lacking
        name = site.model.denoiser_class
        known = classes.denoiser_class_record(name)
        vae = "vae" in self.components and site.model.vae is not None
        vae_may = vae and classes.vae_class_record(known.vae).fuses is not False
        if known.attention.separate and "denoiser" in self.components and not vae_may:
            return (f"the attention of {name} reads separate projections alone",)
        return ()

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        left: list[str] = []
        fused = 0
        modules_here = self._modules(pipe, site)
        for name, module in modules_here.items():
            found = dict[str, Any](attention_modules(module))
            reasons = {path: _reason(part) for path, part in found.items()}
            for path, part in found.items():
                if reasons[path] is None:
                    _fuse(part)
                    fused += 1
            left += [f"{name} ({type(module).__name__}): {reason}" for reason in _distinct(reasons)]
        if modules_here and not fused:
            raise Refusal(f"fuse=qkv: nothing can be fused: {'; '.join(left)}")

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        numbers: dict[str, int | float | str] = {}
        counts: list[str] = []
        for name, module in self._modules(pipe, site).items():
            found = dict[str, Any](attention_modules(module))
            reasons = {path: _reason(part) for path, part in found.items()}
            fused = [path for path, part in found.items() if _is_fused(part)]
            unused = [path for path in found if path not in fused and reasons[path] is None]
            if unused:
                raise NoEffect(
                    f"fuse=qkv: {len(unused)} of {len(found)} attention modules of {name} use separate projections, "
                    f"such as {unused[0]}"
                )
            numbers[name] = len(fused)
            why = f" (left: {'; '.join(_distinct(reasons))})" if len(fused) < len(found) or not found else ""
            counts.append(f"{len(fused)} of {len(found)} attention modules of {name}{why}")
        if not sum(int(count) for count in numbers.values()):
            raise NoEffect(f"fuse=qkv: nothing is fused: {', '.join(counts)}")
        return Effect(f"{', '.join(counts)} fused", numbers)

    def _modules(self, pipe: DiffusionPipeline, site: Site) -> dict[str, nn.Module]:
        """Of the components that the model has."""
        present = [word for word in self.components if attributes(site.model, word)]
        return modules(pipe, site, present or self.components, "fuse.components")


def _distinct(reasons: dict[str, str | None]) -> list[str]:
    """The reasons, each once; where there is no attention at all, that."""
    found = list(dict.fromkeys(reason for reason in reasons.values() if reason is not None))
    return found if reasons else ["no attention module of diffusers"]


def _reason(attention: Any) -> str | None:
    """Why an attention module cannot be fused; None where it can be, or is."""
    from diffusers.models.attention import AttentionModuleMixin

    kind = type(attention.processor).__name__
    if isinstance(attention, AttentionModuleMixin) and not attention._supports_qkv_fusion:
        return f"{type(attention).__name__} has one matrix already"
    if type(attention.processor) in fused_processors() or reads_fused_projections(attention.processor):
        return None
    if "AddedKV" in kind:
        return f"{kind} has keys and values of the text beside"
    return f"{kind} reads separate projections alone"


def _fuse(attention: Any) -> None:
    attention.fuse_projections()
    processor = fused_processors().get(type(attention.processor))
    if processor is not None:
        attention.set_processor(processor())


def _is_fused(attention: Any) -> bool:
    """Whether the fused matrix exists and the processor in place reads it."""
    has_matrix = hasattr(attention, "to_qkv") or hasattr(attention, "to_kv")
    return (
        bool(getattr(attention, "fused_projections", False))
        and has_matrix
        and reads_fused_projections(attention.processor)
    )
