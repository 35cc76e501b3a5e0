"""torch.compile of parts: the blocks that repeat, or all regions; short compilation instead of one large graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from diffopt.errors import Refusal
from diffopt.schema.step import Effect, Order, Site, Step, Trait, register
from diffopt.steps.compile.compiled_call import (
    CompiledCall,
    proof_of_compiled_regions,
    proof_with_cuda_graphs,
    uncompiled_class_of,
)
from diffopt.steps.compile.whole import (
    CompileBackend,
    Divisible,
    Inductor,
    Mode,
    compile_step_traits,
    inductor_options,
    let_module_compile,
    refuse_untunable_compile,
)
from diffopt.steps.components import missing, modules

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn

# the UNet asks `if self.conv_norm_out:`, and torch.compile's wrapper answers with the missing len() of what it wraps
_ASKED_FOR_TRUTH = ("conv_norm_out",)


class Divided(Step):
    """The fields and the proof of both ways of compiling parts; no option by itself.

    Where CUDA graphs are on, each part has one of its own, out of one pool. A call of the whole component begins a step
    of that pool: the parts' outputs live until the next call begins one, so each part reads what the one before wrote.
    """

    order: ClassVar[Order] = Order.COMPILE
    components: Divisible
    backend: CompileBackend
    mode: Mode
    fullgraph: bool
    dynamic: bool | None
    options: Inductor

    @model_validator(mode="after")
    def _only_inductor_is_tuned(self) -> Self:
        refuse_untunable_compile(self.backend, self.mode, self.options)
        return self

    @property
    def traits(self) -> frozenset[Trait]:
        return compile_step_traits(self.backend, self.mode, fullgraph=self.fullgraph)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of ``torch.compile``."""
        return {
            "backend": self.backend,
            "fullgraph": self.fullgraph,
            "dynamic": self.dynamic,
            "options": inductor_options(self.mode, self.options),
        }

    def problems(self, site: Site) -> tuple[str, ...]:
        return missing(site, self.components, "compile.components")

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        found = modules(pipe, site, self.components, "compile.components")
        calls: dict[str, Any] = {name: module._compiled_call_impl for name, module in found.items()}
        effect = proof_of_compiled_regions(calls, fullgraph=self.fullgraph)
        return proof_with_cuda_graphs(effect, calls) if self._replays(site) else effect

    def _replays(self, site: Site) -> bool:
        return Trait.CUDA_GRAPHS in self.traits_on(site.hardware)


@register("compile")
class Regional(Divided):
    """Compile the blocks that repeat (diffusers' ``compile_repeated_blocks``); equal blocks share one graph."""

    kind: Literal["regional"]

    def problems(self, site: Site) -> tuple[str, ...]:
        lacking = super().problems(site)
        if site.model.repeated_blocks == ():
            lacking += (f"the {site.model.denoiser} of {site.model.name} has no blocks that repeat",)
        return lacking

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        denoiser: Any = getattr(pipe, site.model.denoiser)
        found = modules(pipe, site, self.components, "compile.components")
        _refuse_idle_words(site.model.repeated_blocks or (), found.values())  # diffusers' own lists are for all models
        named = site.model.repeated_blocks or getattr(denoiser, "_repeated_blocks", None) or ()
        module: Any
        for name, module in found.items():
            if not hasattr(module, "compile_repeated_blocks"):
                raise Refusal(f"compile=regional: {name} ({type(module).__name__}) is no model of diffusers")
            if module is denoiser or not getattr(module, "_repeated_blocks", ()):  # a ControlNet is built of the same
                module._repeated_blocks = [*named]
            try:
                module.compile_repeated_blocks(**self.settings)
            except ValueError as error:  # none declared, or none of that name in this model
                raise Refusal(_nothing_repeats(name, module)) from error
            parts = [part for part in module.modules() if part._compiled_call_impl]
            _count_calls(module, parts, cuda_graphs=self._replays(site))


@register("compile")
class Regions(Divided):
    """Compile repeated blocks one by one and every other part by itself (accelerate's ``compile_regions``).

    It copies every module that has repeated blocks below it; a hook on one, which replaced its ``forward``, goes on
    calling the original, of which nothing is compiled.
    """

    kind: Literal["regions"]

    @property
    def traits(self) -> frozenset[Trait]:
        return super().traits | {Trait.COPIES_MODULES}

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        from accelerate.utils import compile_regions
        from torch._dynamo.eval_frame import OptimizedModule

        for name, module in modules(pipe, site, self.components, "compile.components").items():
            regions: Any = compile_regions(module, **self.settings)
            _unwrap(regions, self.settings)
            parts = [part for part in regions.modules() if isinstance(part, OptimizedModule)]
            _count_calls(regions, parts, cuda_graphs=self._replays(site))
            setattr(pipe, name, regions)


def _refuse_idle_words(named: Iterable[str], found: Iterable[nn.Module]) -> None:
    """Raises Refusal for a class that no module is of: diffusers takes any list of which one name is right."""
    classes = {type(part).__name__ for module in found for part in module.modules()}
    there = [name for name in named if name in classes]
    idle = [name for name in named if name not in classes]
    if there and idle:  # with none there, diffusers itself refuses
        raise Refusal(
            f"compile=regional: model.repeated_blocks names {', '.join(idle)}, and no module is of that class; "
            f"set model.repeated_blocks=[{', '.join(there)}]"
        )


def _nothing_repeats(name: str, module: Any) -> str:
    """Why no block was compiled, and the classes of which a list in the module has several, and nothing else."""
    from torch import nn

    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part) > 1]
    classes = [{type(part).__name__ for part in found} for found in lists]
    seen = sorted(set().union(*(names for names in classes if len(names) == 1)))
    return (
        f"compile=regional: {name} ({type(module).__name__}) has no blocks of the classes named for it "
        f"({', '.join(module._repeated_blocks) or 'none'}); name them in model.repeated_blocks. "
        f"Those that repeat in it: {', '.join(seen) or 'none'}"
    )


def _unwrap(owner: Any, settings: dict[str, Any]) -> None:
    """Put right what a model does more with than to call it: a wrapper of torch.compile can only be called.

    Z-Image looks its embedders up in a dictionary; others go through a list whose members differ.
    """
    import torch
    from torch import nn
    from torch._dynamo.eval_frame import OptimizedModule

    def compiled(part: nn.Module) -> Any:
        return torch.compile(part, **settings)

    for name, child in owner.named_children():
        if not isinstance(child, OptimizedModule):
            _unwrap(child, settings)
            continue
        wrapped: Any = child._orig_mod
        if isinstance(wrapped, nn.ModuleDict):
            owner._modules[name] = nn.ModuleDict({key: compiled(part) for key, part in wrapped.items()})
        elif isinstance(wrapped, nn.ModuleList):
            owner._modules[name] = nn.ModuleList(map(compiled, wrapped))
        elif name in _ASKED_FOR_TRUTH:
            owner._modules[name] = wrapped


def _count_calls(module: Any, parts: Iterable[Any], *, cuda_graphs: bool) -> None:
    """Count graphs across calls of a component of which only ``parts`` are compiled."""
    parts = tuple(parts)
    let_module_compile(len(parts))
    call = CompiledCall(module._call_impl, cuda_graphs=cuda_graphs, classes=map(uncompiled_class_of, parts))
    call.watch(parts)
    module._compiled_call_impl = call
