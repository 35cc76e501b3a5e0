"""torch.compile: the whole component, its repeated blocks, or accelerate's regions; and the proof that it compiled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from diffopt.components import attributes, missing, modules
from diffopt.errors import Refusal
from diffopt.step import Effect, Frozen, Order, Site, Step, Trait, register

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Target = Literal["denoiser", "vae_decode", "text_encoders"]
Targets = Annotated[tuple[Target, ...], Field(min_length=1)]
# of which parts can be compiled: VAEs are entered by decode, and text encoders' recorded outputs stop dynamo half-way
Divisible = Annotated[tuple[Literal["denoiser"], ...], Field(min_length=1)]
Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
GraphFreeMode = Literal["default", "max-autotune-no-cudagraphs"]
# inductor generates code; the others only capture, which is enough to find graph breaks in seconds
Backend = Literal["inductor", "aot_eager", "eager"]
_WITH_CUDA_GRAPHS = frozenset({"reduce-overhead", "max-autotune"})
_SEARCHING = frozenset({"max-autotune", "max-autotune-no-cudagraphs"})
# the UNet asks `if self.conv_norm_out:`, and torch.compile's wrapper answers with the missing len() of what it wraps
_ASKED_FOR_TRUTH = ("conv_norm_out",)


class Inductor(Frozen):
    """Settings of inductor for these graphs alone, by inductor's own names; null keeps what mode and torch say."""

    conv_1x1_as_mm: bool | None
    coordinate_descent_tuning: bool | None
    coordinate_descent_check_all_directions: bool | None
    epilogue_fusion: bool | None
    force_fuse_int_mm_with_mul: bool | None

    @property
    def chosen(self) -> dict[str, bool]:
        return {name: value for name, value in self.model_dump().items() if value is not None}


@register("compile")
class Full(Step):
    """Compile each component as one graph.

    The denoiser and the text encoders are compiled in place (``module.compile``), so attributes and hooks stay. The
    VAE is called through ``decode``, which ``vae.compile`` does not touch: that method is compiled. Where CUDA graphs
    are on, each call begins a new graph step and returns copies, because a replay overwrites the last outputs.
    ``duck_shape: false`` is the one process-global setting: equal sizes no longer share a symbol.
    """

    order: ClassVar[Order] = Order.COMPILE
    kind: Literal["full"]
    components: Targets
    backend: Backend
    mode: Mode
    fullgraph: bool
    dynamic: bool | None
    duck_shape: bool
    options: Inductor

    @model_validator(mode="after")
    def _only_inductor_is_tuned(self) -> Full:
        _refuse_untunable(self.backend, self.mode, self.options)
        return self

    @property
    def traits(self) -> frozenset[Trait]:
        claims = {
            Trait.CUDA_GRAPHS: self.backend == "inductor" and self.mode in _WITH_CUDA_GRAPHS,
            Trait.WHOLE_DENOISER: "denoiser" in self.components,
        }
        return _traits(self) | {trait for trait, holds in claims.items() if holds}

    def problems(self, site: Site) -> tuple[str, ...]:
        words = tuple("vae" if target == "vae_decode" else target for target in self.components)
        return missing(site, words, "compile.components")  # type: ignore[arg-type]

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        import torch

        from diffopt.steps.compiled_call import CompiledCall

        torch.fx.experimental._config.use_duck_shape = self.duck_shape  # type: ignore[attr-defined]
        settings: dict[str, Any] = {
            "backend": self.backend,
            "fullgraph": self.fullgraph,
            "dynamic": self.dynamic,
            "options": inductor_options(self.mode, self.options),
        }
        graphs = Trait.CUDA_GRAPHS in self.traits_on(site.hardware)
        if "vae_decode" in self.components:
            vae: Any = getattr(pipe, attributes(site.model, "vae")[0])
            vae.decode = CompiledCall(torch.compile(vae.decode, **settings), cuda_graphs=graphs)
        module: Any
        for module in modules(pipe, site, _whole(self.components), "compile.components").values():
            _install_output_hooks(module)
            module.compile(**settings)
            module._compiled_call_impl = CompiledCall(module._compiled_call_impl, cuda_graphs=graphs)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        from diffopt.steps.compiled_call import proof, with_cuda_graphs

        calls: dict[str, Any] = {}
        if "vae_decode" in self.components:
            (name,) = attributes(site.model, "vae")
            calls[f"{name}.decode"] = getattr(pipe, name).decode
        for name, module in modules(pipe, site, _whole(self.components), "compile.components").items():
            calls[name] = module._compiled_call_impl
        effect = proof(calls, fullgraph=self.fullgraph)
        return with_cuda_graphs(effect, calls) if Trait.CUDA_GRAPHS in self.traits_on(site.hardware) else effect


@register("compile")
class Regional(Step):
    """Compile the blocks that repeat (diffusers' ``compile_repeated_blocks``); equal blocks share one graph."""

    order: ClassVar[Order] = Order.COMPILE
    kind: Literal["regional"]
    components: Divisible
    backend: Backend
    mode: GraphFreeMode
    fullgraph: bool
    dynamic: bool | None
    options: Inductor

    @model_validator(mode="after")
    def _only_inductor_is_tuned(self) -> Regional:
        _refuse_untunable(self.backend, self.mode, self.options)
        return self

    @property
    def traits(self) -> frozenset[Trait]:
        return _traits(self)

    def problems(self, site: Site) -> tuple[str, ...]:
        lacking = missing(site, self.components, "compile.components")
        if site.model.repeated_blocks == ():
            lacking += (f"the {site.model.denoiser} of {site.model.name} has no blocks that repeat",)
        return lacking

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        denoiser: Any = getattr(pipe, site.model.denoiser)
        named = site.model.repeated_blocks or getattr(denoiser, "_repeated_blocks", None) or ()
        for name, module in modules(pipe, site, self.components, "compile.components").items():
            repeat: Any = getattr(module, "compile_repeated_blocks", None)
            if repeat is None:
                raise Refusal(f"compile=regional: {name} ({type(module).__name__}) declares no repeated blocks")
            if module is denoiser or not getattr(module, "_repeated_blocks", ()):  # a ControlNet is built of the same
                module._repeated_blocks = [*named]  # type: ignore[assignment]
            try:
                repeat(
                    backend=self.backend,
                    fullgraph=self.fullgraph,
                    dynamic=self.dynamic,
                    options=inductor_options(self.mode, self.options),
                )
            except ValueError as error:  # no repeated blocks declared, or none of that name in this model
                raise Refusal(f"compile=regional: {name}: {error}") from error
            blocks = [part for part in module.modules() if part._compiled_call_impl is not None]
            _count_calls(module, blocks)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        return _proof_of_regions(self, pipe, site)


@register("compile")
class Regions(Step):
    """Compile repeated blocks one by one and every other part by itself (accelerate's ``compile_regions``)."""

    order: ClassVar[Order] = Order.COMPILE
    kind: Literal["regions"]
    components: Divisible
    backend: Backend
    mode: GraphFreeMode
    fullgraph: bool
    dynamic: bool | None
    options: Inductor

    @model_validator(mode="after")
    def _only_inductor_is_tuned(self) -> Regions:
        _refuse_untunable(self.backend, self.mode, self.options)
        return self

    @property
    def traits(self) -> frozenset[Trait]:
        return _traits(self)

    def problems(self, site: Site) -> tuple[str, ...]:
        return missing(site, self.components, "compile.components")

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        from accelerate.utils import compile_regions
        from torch._dynamo.eval_frame import OptimizedModule

        for name, module in modules(pipe, site, self.components, "compile.components").items():
            regions: Any = compile_regions(
                module,
                backend=self.backend,
                fullgraph=self.fullgraph,
                dynamic=self.dynamic,
                options=inductor_options(self.mode, self.options),
            )
            for leaf in _ASKED_FOR_TRUTH:
                if (wrapped := getattr(regions, leaf, None)) is not None:
                    setattr(regions, leaf, wrapped._orig_mod)
            _count_calls(regions, [part for part in regions.modules() if isinstance(part, OptimizedModule)])
            setattr(pipe, name, regions)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        return _proof_of_regions(self, pipe, site)


def inductor_options(mode: Mode, options: Inductor) -> dict[str, Any] | None:
    """What ``torch.compile(options=…)`` takes: it refuses ``mode`` and ``options`` together, so a mode is spelt out."""
    from torch._inductor import list_mode_options

    return {**list_mode_options(mode), **options.chosen} or None


def _traits(step: Full | Regional | Regions) -> frozenset[Trait]:
    claims = {
        Trait.GENERATES_CODE: step.backend == "inductor",
        Trait.FULLGRAPH: step.fullgraph,
        Trait.SEARCHES_GEMM: step.mode in _SEARCHING,
    }
    return frozenset(trait for trait, holds in claims.items() if holds)


def _refuse_untunable(backend: Backend, mode: Mode, options: Inductor) -> None:
    if backend != "inductor" and (mode != "default" or options.chosen):
        raise ValueError(f"backend={backend} generates no code, so mode must be default and every option null")


def _whole(targets: Iterable[Target]) -> tuple[Any, ...]:
    return tuple(target for target in targets if target != "vae_decode")


def _install_output_hooks(module: Any) -> None:
    """Call a text encoder once, eagerly, as pipelines call it.

    On the first call that asks for hidden states, transformers installs its hooks under a lock, which dynamo cannot
    trace (transformers 5, utils/output_capturing.py).
    """
    import torch
    from transformers import PreTrainedModel

    if isinstance(module, PreTrainedModel):
        with torch.no_grad():
            module(torch.zeros(1, 2, dtype=torch.long, device=module.device), output_hidden_states=True)


def _count_calls(module: Any, parts: Iterable[Any]) -> None:
    """Count graphs across calls of a component of which only ``parts`` are compiled."""
    from diffopt.steps.compiled_call import CompiledCall

    call = CompiledCall(module._call_impl, cuda_graphs=False)
    call.watch(parts)
    module._compiled_call_impl = call


def _proof_of_regions(step: Regional | Regions, pipe: DiffusionPipeline, site: Site) -> Effect:
    from diffopt.steps.compiled_call import proof_of_regions

    found = modules(pipe, site, step.components, "compile.components")
    calls = {name: module._compiled_call_impl for name, module in found.items()}
    return proof_of_regions(calls, fullgraph=step.fullgraph)
