"""Ahead-of-time compilation: the denoiser as a package that a later process loads instead of compiling."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from diffopt.machine.compile_cache import compile_conditions_here, packages_of_user
from diffopt.schema.step import Effect, Order, Site, Step, Trait, register
from diffopt.steps.compile.whole import Divisible, GraphFreeMode, Inductor, compile_step_traits, inductor_options
from diffopt.steps.components import missing, modules

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@register("compile")
class Ahead(Step):
    """Compile each component into a package (AOTInductor) at its first call, or load the one made earlier.

    Packages lie in the user's cache, under a hash of the recipe without its sampler, the library versions, the device,
    the module and its inputs; each holds one kind of inputs. They hold no weights, so these must stay where they are.
    """

    order: ClassVar[Order] = Order.COMPILE
    kind: Literal["aot"]
    components: Divisible
    mode: GraphFreeMode
    options: Inductor

    @property
    def traits(self) -> frozenset[Trait]:
        return compile_step_traits("inductor", self.mode, fullgraph=False) | {Trait.EXPORTS}

    def problems(self, site: Site) -> tuple[str, ...]:
        return missing(site, self.components, "compile.components")

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        from diffopt.steps.compile.packaged_call import PackagedCall  # which imports torch

        settings, packages = inductor_options(self.mode, self.options) or {}, packages_of_user()
        for name, module in modules(pipe, site, self.components, "compile.components").items():
            identity = {
                "recipe": site.code_id,
                "component": name,
                "settings": settings,
                "place": compile_conditions_here(site.hardware.device).model_dump(),
            }
            module._compiled_call_impl = PackagedCall(module, packages, identity=identity, settings=settings)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        from diffopt.steps.compile.packaged_call import proof_of_compiled_packages  # likewise

        found = modules(pipe, site, self.components, "compile.components")
        return proof_of_compiled_packages({name: module._compiled_call_impl for name, module in found.items()})
