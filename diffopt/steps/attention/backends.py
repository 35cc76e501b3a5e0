"""How attention is computed: one of the backends of diffusers' dispatcher, or diffusers' plain processor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from diffopt.errors import NoEffect, Refusal
from diffopt.models import classes
from diffopt.schema.record import Descriptive
from diffopt.schema.step import Effect, Order, Requirements, Site, Step, Trait, register
from diffopt.steps.attention import hub_kernels
from diffopt.steps.attention.hub_kernels import HubKernel
from diffopt.steps.attention.processors import (
    attention_modules,
    backend_of_processor,
    dispatching_processor_for,
    plain_processors,
    softmax_attentions,
)
from diffopt.steps.components import DiffusersComponent, DiffusersComponents, missing, modules

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from diffusers.models.attention_dispatch import AttentionBackendName

    from diffopt.schema.hardware import Hardware
    from diffopt.schema.model import Model

# diffusers' names: AttentionBackendName, which only torch can be asked for
Backend = Literal[
    "flash",
    "flash_hub",
    "flash_varlen",
    "flash_varlen_hub",
    "flash_4_hub",
    "_flash_3",
    "_flash_varlen_3",
    "_flash_3_hub",
    "_flash_3_varlen_hub",
    "aiter_fa2_hub",
    "flex",
    "native",
    "_native_cudnn",
    "_native_efficient",
    "_native_flash",
    "_native_math",
    "_native_npu",
    "_native_xla",
    "sage",
    "sage_hub",
    "sage_blackwell_hub",
    "sage_varlen",
    "_sage_qk_int8_pv_fp8_cuda",
    "_sage_qk_int8_pv_fp8_cuda_sm90",
    "_sage_qk_int8_pv_fp16_cuda",
    "_sage_qk_int8_pv_fp16_triton",
    "xformers",
]


@register("attention")
class Dispatch(Step):
    """Compute attention with ``backend``, by diffusers' own name, in UNets and VAEs as in transformers.

    What the backend needs is data in the option's YAML, so that another backend is one YAML and no code. Its failures
    (head size, mask, missing kernel) are errors: nothing falls back to another backend. Linear attention (Sana's
    self-attention) has no softmax that a kernel could compute; it is left, and the effect says so.
    """

    order: ClassVar[Order] = Order.ATTENTION
    kind: Literal["dispatch"]
    backend: Backend
    components: DiffusersComponents
    devices: tuple[Literal["cuda", "cpu"], ...]
    compute_capability: tuple[int, int] | None
    exact_compute_capabilities: tuple[tuple[int, int], ...] | None
    dtypes: tuple[Literal["float32", "float16", "bfloat16"], ...] | None
    bfloat16_compute_capability: tuple[int, int] | None
    max_head_size: Annotated[int, Field(ge=1)] | None
    max_head_size_below: tuple[int, int] | None
    masks: bool
    graph_breaks: bool
    hub: HubKernel | None
    packages: tuple[str, ...]
    install: Annotated[str | None, Descriptive()]
    evidence: Annotated[str, Descriptive()]
    # the default keeps the ids of recipes older than the field
    no_lowering_on: tuple[Literal["cuda", "cpu"], ...] = ()

    @model_validator(mode="after")
    def _a_hub_kernel_says_which(self) -> Dispatch:
        if self.backend.endswith("_hub") != (self.hub is not None):
            raise ValueError(
                f"attention.backend={self.backend}: a backend whose name ends in _hub has its kernel from the hub, and "
                "attention.hub says from which repository and commit; for any other backend it is null"
            )
        return self

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({Trait.GRAPH_BREAKS} if self.graph_breaks else ())

    def traits_on(self, hardware: Hardware) -> frozenset[Trait]:
        return self.traits | ({Trait.HAS_NO_LOWERING} if hardware.device in self.no_lowering_on else set())

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
        found = [*missing(site, self.components, "attention.components"), *self._heads_too_large(site)]
        if not self.masks and "denoiser" in self.components and (why := _masks(site)):
            found.append(f"takes no attention mask, and {site.model.denoiser_class} masks the padding of {why}")
        if self.hub is not None:
            found += hub_kernels.attention_kernel_problems(self.hub)
        return tuple(found)

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        backend = self._available_backend()
        for name, module in modules(pipe, site, self.components, "attention.components").items():
            found = softmax_attentions(module)
            if not found:
                kind = type(module).__name__
                raise Refusal(f"attention.components: {name} ({kind}) has no attention module of diffusers")
            for path, attention in found.items():
                ours = dispatching_processor_for(f"{name}.{path}", attention)
                if ours is not None:
                    attention.set_processor(ours(backend))
                else:
                    attention.processor._attention_backend = backend

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        from diffusers.models.attention_dispatch import AttentionBackendName

        backend = AttentionBackendName(self.backend)
        numbers: dict[str, int | float | str] = {}
        counts: list[str] = []
        for name, module in modules(pipe, site, self.components, "attention.components").items():
            found = softmax_attentions(module)
            other = [path for path, part in found.items() if backend_of_processor(part) is not backend]
            if other or not found:
                where = f", such as {other[0]}" if other else ""
                raise NoEffect(
                    f"attention.backend={self.backend}: {len(other)} of {len(found)} attention modules of {name} "
                    f"do not use it{where}"
                )
            numbers[name] = len(found)
            counts.append(f"{len(found)} attention modules of {name}")
            if linear := len(attention_modules(module)) - len(found):
                numbers[f"{name}_linear"] = linear
                counts[-1] += f" (beside {linear} linear ones, which have no softmax)"
        at = f" at commit {self.hub.revision}" if self.hub is not None else ""
        return Effect(f"{', '.join(counts)} call {self.backend}{at}", numbers)

    def _heads_too_large(self, site: Site) -> Iterator[str]:
        """One reason per component whose heads the kernel certainly cannot take on this GPU."""
        limit, below, found = self.max_head_size, self.max_head_size_below, site.hardware.compute_capability
        if limit is None or site.hardware.device != "cuda":
            return
        if below is not None and (found is None or found >= below):
            return
        where = "" if below is None else f" below compute capability {below[0]}.{below[1]}"
        for component in self.components:
            sizes = [size for size in head_sizes_for_attention(site.model, component) if size > limit]
            if sizes:
                held = ", ".join(map(str, sizes))
                yield f"takes heads of up to {limit} channels{where}, the {component} has {held}"

    def _available_backend(self) -> AttentionBackendName:
        """diffusers' backend of this name; raises Refusal where it is unknown or its package missing or too old."""
        from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

        if self.hub is not None:
            hub_kernels.install_kernel(AttentionBackendName(self.backend), self.hub)
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
        found = [*missing(site, self.components, "attention.components")]
        model = site.model
        stock = classes.denoiser_class_record(model.denoiser_class).attention.stock
        transformer = model.denoiser == "transformer" and not stock
        if "denoiser" in self.components and transformer:
            found.append(
                f"diffusers has no plain processor for {model.denoiser_class}; attention=math computes the same"
            )
        return tuple(found)

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        for name, module in modules(pipe, site, self.components, "attention.components").items():
            found: dict[str, Any] = dict(attention_modules(module))
            if not found:
                kind = type(module).__name__
                raise Refusal(f"attention.components: {name} ({kind}) has no attention module of diffusers")
            for path, attention in found.items():
                plain = plain_processors().get(type(attention.processor))
                if plain is None:
                    kind = type(attention.processor).__name__
                    raise Refusal(f"attention=vanilla: diffusers has no plain processor for {name}.{path} ({kind})")
                attention.set_processor(plain())

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        kinds = set(plain_processors().values())
        numbers: dict[str, int | float | str] = {}
        for name, module in modules(pipe, site, self.components, "attention.components").items():
            found = attention_modules(module)
            plain = sum(type(part.processor) in kinds for part in found.values())
            if plain == 0 or plain < len(found):
                raise NoEffect(f"attention=vanilla: {plain} of {len(found)} attention modules of {name} are plain")
            numbers[name] = plain
        counts = ", ".join(f"{count} attention modules of {name}" for name, count in numbers.items())
        return Effect(f"{counts} use diffusers' plain processor", numbers)


def _masks(site: Site) -> str | None:
    """What the denoiser hides by a mask when this workload runs; None where it needs no mask."""
    masks, workload = classes.denoiser_class_record(site.model.denoiser_class).attention.masks, site.workload
    if masks == "text":
        return "its text"
    if workload is None or masks is None:
        return None
    if masks == "uneven_prompts_and_negative" and workload.guidance > 0:
        return "the prompt or the negative prompt, which share a batch"
    return "prompts that differ" if len(set(workload.batch_prompts)) > 1 else None


def head_sizes_for_attention(model: Model, component: DiffusersComponent) -> tuple[int, ...]:
    """Channels per attention head of a component, as far as the model's data tell."""
    if component == "denoiser":
        return model.head_sizes
    return () if model.vae_head_size is None else (model.vae_head_size,)
