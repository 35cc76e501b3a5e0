"""Layerwise casting: weights are stored in float8 and widened to the computing precision when their layer is called."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from diffopt.errors import NoEffect, Refusal
from diffopt.schema.step import Effect, Order, Requirements, Site, Step, Trait, register
from diffopt.steps.components import DiffusersComponents, missing, modules, refuse_copies
from diffopt.steps.precision import dtype_name
from diffopt.steps.quant.linears import Words, refuse_idle_quant_words
from diffopt.steps.quant.values import first_non_finite_weight

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn

# LoRA layers are small; pipelines of Stable Diffusion cast latents to the dtype of the VAE's post_quant_conv.
_LEFT = ("lora_", "post_quant_conv")


@register("quant")
class Float8Storage(Step):
    """diffusers' layerwise casting of Linears, convolutions and embeddings, on any device.

    There is no scale, so a weight beyond what ``storage`` can hold (448 in e4m3fn) would be clipped: refused. Left are
    layers whose path has one of the words in ``skip``, begins with one of the model's ``quant_skip``, or belongs to
    what diffusers itself leaves (norms, patch and position embedders, modules kept in float32). A float8 weight that
    was not widened cannot be multiplied at all, so that a call that succeeded has widened it.
    Not for text encoders: pipelines draw their noise in the dtype that a text encoder says it has, which transformers
    takes from the first weight, then a float8 one.
    """

    order: ClassVar[Order] = Order.CAST
    kind: Literal["fp8_storage"]
    components: DiffusersComponents
    storage: Literal["float8_e4m3fn", "float8_e5m2"]
    skip: Words
    non_blocking: bool

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({Trait.CASTS_STORAGE})

    def requires(self) -> Requirements:
        return Requirements(
            evidence="https://huggingface.co/docs/diffusers/main/en/optimization/memory#layerwise-casting"
        )

    def problems(self, site: Site) -> tuple[str, ...]:
        return missing(site, self.components, "quant.components")

    def weight_bytes(self, part: str, site: Site) -> float | None:
        return 1 if part in self.components else None

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        import torch
        from diffusers.hooks import apply_layerwise_casting

        storage = getattr(torch, self.storage)
        found = modules(pipe, site, self.components, "quant.components")
        refuse_idle_quant_words(site, self.skip, [path for module in found.values() for path in _layers(module)])
        for name, module in found.items():
            largest = _largest(module)
            apply_layerwise_casting(
                module,
                storage_dtype=storage,
                compute_dtype=_computing(module),
                skip_modules_pattern=self._patterns(module, site),
                non_blocking=self.non_blocking,
            )
            refuse_copies(module, f"quant={self.kind}")
            beyond = [path for path in _cast(module) if largest[path] > torch.finfo(storage).max]
            if beyond:
                raise Refusal(f"quant={self.kind}: {name}.{beyond[0]} has weights beyond the range of {self.storage}")

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        numbers: dict[str, int | float | str] = {}
        counts: list[str] = []
        for name, module in modules(pipe, site, self.components, "quant.components").items():
            layers = _cast(module)
            weights = [weight for layer, _ in layers.values() for weight in layer.parameters()]
            wide = [weight for weight in weights if dtype_name(weight.dtype) != self.storage]
            if not layers or wide:
                raise NoEffect(
                    f"quant={self.kind}: {len(weights) - len(wide)} of {len(weights)} weights that were to be cast of "
                    f"{name} are stored in {self.storage}"
                )
            if (spoiled := first_non_finite_weight({path: layer for path, (layer, _) in layers.items()})) is not None:
                raise NoEffect(f"quant={self.kind}: {name}.{spoiled}")
            dtypes = {dtype_name(hook.compute_dtype) for _, hook in layers.values()}
            total = sum(weight.numel() for weight in module.parameters())
            share = sum(weight.numel() for weight in weights) / total
            numbers[name], numbers[f"{name}_share"] = len(layers), round(share, 4)
            computed = " and ".join(sorted(dtypes))
            counts.append(f"{len(layers)} layers of {name} ({share:.0%} of its parameters), computed in {computed}")
        return Effect(f"stored in {self.storage}: {'; '.join(counts)}", numbers)

    def _patterns(self, module: Any, site: Site) -> tuple[str, ...]:
        """What is left, as diffusers wants it: regular expressions that are searched for in paths."""
        from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN

        own = module._skip_layerwise_casting_patterns or ()
        kept = module._keep_in_fp32_modules or ()
        beginnings = [rf"^{re.escape(path)}(\.|$)" for path in site.model.quant_skip]
        words = [re.escape(word) for word in (*self.skip, *kept)]
        return (*DEFAULT_SKIP_MODULES_PATTERN, *_LEFT, *own, *words, *beginnings)


def _layers(module: nn.Module) -> Iterator[str]:
    """Paths of the modules that have parameters of their own."""
    return (path for path, layer in module.named_modules() if any(True for _ in layer.parameters(recurse=False)))


def _computing(module: nn.Module) -> torch.dtype:
    """What most of the component's parameters are in."""
    counts: Counter[torch.dtype] = Counter()
    for weight in module.parameters():
        counts[weight.dtype] += weight.numel()
    return counts.most_common(1)[0][0]


def _largest(module: nn.Module) -> dict[str, float]:
    """The largest absolute value of each layer's own parameters, by path."""
    return {
        path: max(float(weight.detach().abs().max()) for weight in weights)
        for path, layer in module.named_modules()
        if (weights := list(layer.parameters(recurse=False)))
    }


def _cast(module: nn.Module) -> dict[str, tuple[nn.Module, Any]]:
    """Layers that have diffusers' hook, with the hook, by path."""
    from diffusers.hooks.layerwise_casting import _LAYERWISE_CASTING_HOOK

    found = {
        path: (layer, layer._diffusers_hook.get_hook(_LAYERWISE_CASTING_HOOK))
        for path, layer in module.named_modules()
        if hasattr(layer, "_diffusers_hook")
    }
    return {path: (layer, hook) for path, (layer, hook) in found.items() if hook is not None}
