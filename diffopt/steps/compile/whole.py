"""torch.compile of whole components, and what every way of compiling has in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import model_validator

from diffopt.errors import NoEffect
from diffopt.schema.record import Frozen
from diffopt.schema.step import Effect, Order, Site, Step, Trait, register
from diffopt.steps.compile.compiled_call import CompiledCall, proof_of_compiled_graphs, proof_with_cuda_graphs
from diffopt.steps.components import SomeParts, missing, modules, refuse_copies

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn

CompiledPart = Literal["denoiser", "vae_decode", "text_encoders"]
Targets = Annotated[tuple[CompiledPart, ...], *SomeParts]
# of which parts can be compiled: VAEs are entered by decode, and text encoders' recorded outputs stop dynamo half-way
Divisible = Annotated[tuple[Literal["denoiser"], ...], *SomeParts]
Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
GraphFreeMode = Literal["default", "max-autotune-no-cudagraphs"]
# inductor generates code; the others only capture, which is enough to find graph breaks in seconds
CompileBackend = Literal["inductor", "aot_eager", "eager"]
_WITH_CUDA_GRAPHS = frozenset({"reduce-overhead", "max-autotune"})
_SEARCHING = frozenset({"max-autotune", "max-autotune-no-cudagraphs"})


class Inductor(Frozen):
    """Settings of inductor for these graphs alone, by inductor's own names; null keeps what mode and torch say."""

    conv_1x1_as_mm: bool | None
    coordinate_descent_tuning: bool | None
    coordinate_descent_check_all_directions: bool | None
    epilogue_fusion: bool | None

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
    backend: CompileBackend
    mode: Mode
    fullgraph: bool
    dynamic: bool | None
    duck_shape: bool
    options: Inductor

    @model_validator(mode="after")
    def _only_inductor_is_tuned(self) -> Full:
        refuse_untunable_compile(self.backend, self.mode, self.options)
        return self

    @model_validator(mode="after")
    def _symbols_are_there_to_be_shared(self) -> Full:
        if self.dynamic is False and not self.duck_shape:
            raise ValueError(
                "compile.duck_shape=false does nothing with compile.dynamic=false, where no size becomes a symbol: "
                "set compile.duck_shape=true, or compile.dynamic to true or null"
            )
        return self

    @property
    def traits(self) -> frozenset[Trait]:
        whole = {Trait.WHOLE_DENOISER} if "denoiser" in self.components else set()
        return compile_step_traits(self.backend, self.mode, fullgraph=self.fullgraph) | whole

    def problems(self, site: Site) -> tuple[str, ...]:
        return missing(site, self.components, "compile.components")

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        import torch

        torch.fx.experimental._config.use_duck_shape = self.duck_shape  # type: ignore[attr-defined]
        settings: dict[str, Any] = {
            "backend": self.backend,
            "fullgraph": self.fullgraph,
            "dynamic": self.dynamic,
            "options": inductor_options(self.mode, self.options),
        }
        graphs = Trait.CUDA_GRAPHS in self.traits_on(site.hardware)
        vae: Any
        for vae in modules(pipe, site, _decoded(self.components), "compile.components").values():
            vae.decode = CompiledCall(torch.compile(vae.decode, **settings), cuda_graphs=graphs)
            refuse_copies(vae, "compile.components=vae_decode")
        module: Any
        for module in modules(pipe, site, _whole(self.components), "compile.components").values():
            if not self.fullgraph:  # the pieces between graph breaks may share their code, as those of hooks do
                let_module_compile(sum(1 for _ in module.modules()))
            module.compile(**settings)
            module._compiled_call_impl = CompiledCall(
                module._compiled_call_impl,
                cuda_graphs=graphs,
                classes={type(module)},
                settle=module._call_impl if _may_be_called_twice(module) else None,
            )

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        calls: dict[str, Any] = {}
        for name, vae in modules(pipe, site, _decoded(self.components), "compile.components").items():
            calls[f"{name}.decode"] = vae.decode
        for name, module in modules(pipe, site, _whole(self.components), "compile.components").items():
            calls[name] = module._compiled_call_impl
        effect = self._with_duck_shape(proof_of_compiled_graphs(calls, fullgraph=self.fullgraph))
        return proof_with_cuda_graphs(effect, calls) if Trait.CUDA_GRAPHS in self.traits_on(site.hardware) else effect

    def _with_duck_shape(self, effect: Effect) -> Effect:
        """Tells of symbols of their own. Raises NoEffect where the setting, which is the process's, is another now."""
        import torch

        shared = bool(torch.fx.experimental._config.use_duck_shape)  # type: ignore[attr-defined]
        if shared is not self.duck_shape:
            raise NoEffect(f"compile.duck_shape={str(self.duck_shape).lower()}, but torch's is {str(shared).lower()}")
        if self.duck_shape:
            return effect
        return Effect(f"{effect.summary}, equal sizes apart", {**effect.numbers, "duck_shape": "false"})


def inductor_options(mode: Mode, options: Inductor) -> dict[str, Any] | None:
    """What ``torch.compile(options=…)`` takes: it refuses ``mode`` and ``options`` together, so a mode is spelt out."""
    from torch._inductor import list_mode_options

    return {**list_mode_options(mode), **options.chosen} or None


def compile_step_traits(backend: CompileBackend, mode: Mode, *, fullgraph: bool) -> frozenset[Trait]:
    """What a compiled pipeline cannot bear, whatever part of it is compiled."""
    claims = {
        Trait.TRACES: True,
        Trait.GENERATES_CODE: backend == "inductor",
        Trait.CUDA_GRAPHS: backend == "inductor" and mode in _WITH_CUDA_GRAPHS,
        Trait.FULLGRAPH: fullgraph,
        Trait.SEARCHES_GEMM: mode in _SEARCHING,
    }
    return frozenset(trait for trait, holds in claims.items() if holds)


def refuse_untunable_compile(backend: CompileBackend, mode: Mode, options: Inductor) -> None:
    if backend != "inductor" and (mode != "default" or options.chosen):
        raise ValueError(
            f"compile.backend={backend} generates no code: set compile.mode=default and every one of compile.options "
            "to null"
        )


def _may_be_called_twice(module: nn.Module) -> bool:
    """Whether a first call that is not compiled changes nothing but what dynamo cannot trace.

    transformers then installs its hooks for recorded outputs, under a lock (utils/output_capturing.py); Z-Image makes
    its rotary tables, on a device of its own. A denoiser that takes caches is not: they would count the call as a step.
    """
    from diffusers import CacheMixin

    return not isinstance(module, CacheMixin)


def _decoded(targets: Iterable[CompiledPart]) -> tuple[CompiledPart, ...]:
    return tuple(target for target in targets if target == "vae_decode")


def _whole(targets: Iterable[CompiledPart]) -> tuple[CompiledPart, ...]:
    return tuple(target for target in targets if target != "vae_decode")


def let_module_compile(times: int) -> None:
    """Let dynamo compile the same code for each of so many modules.

    Its limit is 8 for a function; beyond it, dynamo raises where a whole graph was promised, and elsewhere runs the
    rest without compiling. The ResNet blocks of a UNet have more shapes than that. Process-global.
    """
    import torch._dynamo

    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, times)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, times)
