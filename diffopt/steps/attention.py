"""How attention is computed: one of the backends of diffusers' dispatcher, or diffusers' plain processor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from diffopt.components import DiffusersComponent, DiffusersComponents, missing, modules
from diffopt.errors import NoEffect, Refusal
from diffopt.step import Descriptive, Effect, Order, Requirements, Site, Step, Trait, register

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from diffusers.models.attention_dispatch import AttentionBackendName
    from torch import nn

    from diffopt.recipe import Model


@register("attention")
class Dispatch(Step):
    """Compute attention with ``backend``, by diffusers' own name, in UNets and VAEs as in transformers.

    What the backend needs is data in the option's YAML, so that a new backend is one YAML and no code. Its failures
    (head size, mask, missing kernel) are errors: nothing falls back to another backend.
    """

    order: ClassVar[Order] = Order.ATTENTION
    kind: Literal["dispatch"]
    backend: str
    components: DiffusersComponents
    devices: tuple[Literal["cuda", "cpu"], ...]
    compute_capability: tuple[int, int] | None
    exact_compute_capabilities: tuple[tuple[int, int], ...] | None
    dtypes: tuple[Literal["float32", "float16", "bfloat16"], ...] | None
    bfloat16_compute_capability: tuple[int, int] | None
    max_head_size: Annotated[int, Field(ge=1)] | None
    max_head_size_below: tuple[int, int] | None
    graph_breaks: bool
    packages: tuple[str, ...]
    install: Annotated[str | None, Descriptive()]
    evidence: Annotated[str, Descriptive()]

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({Trait.GRAPH_BREAKS} if self.graph_breaks else ())

    def requires(self) -> Requirements:
        exact = self.exact_compute_capabilities
        return Requirements(
            devices=frozenset(self.devices),
            compute_capability=self.compute_capability,
            exact_compute_capabilities=None if exact is None else frozenset(exact),
            bfloat16_compute_capability=self.bfloat16_compute_capability,
            packages=self.packages,
            install=self.install,
            dtypes=None if self.dtypes is None else frozenset(self.dtypes),
            evidence=self.evidence,
        )

    def problems(self, site: Site) -> tuple[str, ...]:
        return (*missing(site, self.components, "attention.components"), *self._heads_too_large(site))

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        from diffopt.steps.unet_attention import DispatchAttnProcessor

        backend = self._available_backend()
        for name, module in modules(pipe, site, self.components, "attention.components").items():
            for path, attention in attentions(module).items():
                if _takes_our_processor(f"{name}.{path}", attention):
                    attention.set_processor(DispatchAttnProcessor(backend))  # type: ignore[operator]
                else:
                    attention.processor._attention_backend = backend  # type: ignore[union-attr]

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        from diffusers.models.attention_dispatch import AttentionBackendName

        backend = AttentionBackendName(self.backend)
        numbers: dict[str, int | float | str] = {}
        for name, module in modules(pipe, site, self.components, "attention.components").items():
            found = attentions(module)
            other = [path for path, part in found.items() if _backend_of(part) is not backend]
            if other or not found:
                where = f", such as {other[0]}" if other else ""
                raise NoEffect(
                    f"attention.backend={self.backend}: {len(other)} of {len(found)} attention modules of {name} "
                    f"do not use it{where}"
                )
            numbers[name] = len(found)
        counts = ", ".join(f"{count} attention modules of {name}" for name, count in numbers.items())
        return Effect(f"{counts} call {self.backend}", numbers)

    def _heads_too_large(self, site: Site) -> Iterator[str]:
        """One reason per component whose heads the kernel certainly cannot take on this GPU."""
        limit, below, found = self.max_head_size, self.max_head_size_below, site.hardware.compute_capability
        if limit is None or site.hardware.device != "cuda":
            return
        if below is not None and (found is None or found >= below):
            return
        where = "" if below is None else f" below compute capability {below[0]}.{below[1]}"
        for component in self.components:
            sizes = [size for size in head_sizes(site.model, component) if size > limit]
            if sizes:
                held = ", ".join(map(str, sizes))
                yield f"takes heads of up to {limit} channels{where}, the {component} has {held}"

    def _available_backend(self) -> AttentionBackendName:
        """diffusers' backend of this name; raises Refusal where it is unknown or its package missing or too old."""
        from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

        try:
            with attention_backend(self.backend):  # checks the package on entry; the active backend stays as it was
                return AttentionBackendName(self.backend)
        except (ValueError, RuntimeError) as error:
            raise Refusal(f"attention.backend={self.backend}: {error}") from error


@register("attention")
class Vanilla(Step):
    """diffusers' plain processor: softmax(q k^T) v as separate products, the whole score matrix in memory.

    ``set_default_attn_processor`` would not do: it also resolves to plain attention only for some processor classes.
    """

    order: ClassVar[Order] = Order.ATTENTION
    kind: Literal["vanilla"]
    components: DiffusersComponents

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({Trait.STOCK_PROCESSOR})

    def problems(self, site: Site) -> tuple[str, ...]:
        return missing(site, self.components, "attention.components")

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor, AttnProcessor

        for name, module in modules(pipe, site, self.components, "attention.components").items():
            for path, attention in attentions(module).items():
                if not isinstance(attention, Attention):
                    kind = type(attention).__name__
                    raise Refusal(f"attention=vanilla: {name}.{path} ({kind}) has no plain processor in diffusers")
                plain = AttnProcessor if attention.added_kv_proj_dim is None else AttnAddedKVProcessor
                attention.set_processor(plain())

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        from diffusers.models.attention_processor import AttnAddedKVProcessor, AttnProcessor

        numbers: dict[str, int | float | str] = {}
        for name, module in modules(pipe, site, self.components, "attention.components").items():
            found = attentions(module)
            plain = sum(type(part.processor) in (AttnProcessor, AttnAddedKVProcessor) for part in found.values())
            if plain == 0 or plain < len(found):
                raise NoEffect(f"attention=vanilla: {plain} of {len(found)} attention modules of {name} are plain")
            numbers[name] = plain
        counts = ", ".join(f"{count} attention modules of {name}" for name, count in numbers.items())
        return Effect(f"{counts} use diffusers' plain processor", numbers)


def head_sizes(model: Model, component: DiffusersComponent) -> tuple[int, ...]:
    """Channels per attention head of a component, as far as the model's data tell."""
    if component == "denoiser":
        return model.head_sizes
    return () if model.vae_head_size is None else (model.vae_head_size,)


def attentions(module: nn.Module) -> dict[str, nn.Module]:
    """All attention modules of a component, by path."""
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import Attention

    return {path: part for path, part in module.named_modules() if isinstance(part, (Attention, AttentionModuleMixin))}


def _takes_our_processor(path: str, attention: nn.Module) -> bool:
    """True where the stock processor would not call the dispatcher. Raises Refusal for one that ours cannot replace."""
    from diffusers.models.attention_processor import (
        Attention,
        AttnProcessor,
        AttnProcessor2_0,
        FusedAttnProcessor2_0,
        XFormersAttnProcessor,
    )

    if hasattr(attention.processor, "_attention_backend"):
        return False
    replaceable = (AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0, XFormersAttnProcessor)
    if isinstance(attention, Attention) and type(attention.processor) in replaceable:
        return True
    raise Refusal(
        f"attention: {path} uses {type(attention.processor).__name__}, which computes something else than plain self- "
        "or cross-attention and does not call diffusers' dispatcher; use attention=auto"
    )


def _backend_of(attention: nn.Module) -> AttentionBackendName | None:
    return getattr(attention.processor, "_attention_backend", None)
