"""Computing precision: the dtype of the weights, and whether float32 matrix products may be rounded to TF32."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from diffopt.components import parts
from diffopt.errors import NoEffect
from diffopt.step import Effect, Order, Requirements, Site, Step, Trait, register

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn

_TRAITS = {
    "float32": Trait.FULL_PRECISION,
    "float16": Trait.HALF_PRECISION_FP16,
    "bfloat16": Trait.HALF_PRECISION_BF16,
}


@register("precision")
class Precision(Step):
    """Load all weights in ``dtype``, the VAE perhaps wider.

    ``vae: auto`` is float32 where float16 is asked for and the model's VAE overflows in it (SDXL decodes to black),
    else ``dtype``. Where the VAE differs, its ``decode`` casts its input: pipelines hand it latents in ``dtype``.
    ``tf32`` is set for matrix products and convolutions alike, also to false: torch leaves it on for convolutions,
    so that its own float32 is not IEEE float32.
    """

    order: ClassVar[Order] = Order.LOAD
    kind: Literal["dtype"]
    dtype: Literal["float32", "float16", "bfloat16"]
    vae: Literal["auto", "float32", "float16", "bfloat16"]
    tf32: bool

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({_TRAITS[self.dtype]})

    def requires(self) -> Requirements:
        if not self.tf32:
            return Requirements()
        return Requirements(
            devices=frozenset({"cuda"}),
            compute_capability=(8, 0),
            evidence="https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices",
        )

    def vae_dtype(self, site: Site) -> str:
        """The VAE's dtype for this model."""
        if self.vae != "auto":
            return self.vae
        overflows = self.dtype == "float16" and site.model.limits.fp16_vae_overflows
        return "float32" if overflows else self.dtype

    def load_kwargs(self, site: Site) -> dict[str, Any]:
        """``{"dtype": {"default": …, "vae": …}}``: torch dtypes by component, as ``from_pretrained`` takes them."""
        return {"dtype": self._dtypes(site)}

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.allow_tf32 = self.tf32
        if site.model.vae is not None and self.vae_dtype(site) != self.dtype:
            vae: Any = getattr(pipe, site.model.vae)
            vae.decode = _casting(vae.decode, getattr(torch, self.vae_dtype(site)))

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        import torch

        flags = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
        if flags != (self.tf32, self.tf32):
            raise NoEffect(f"precision.tf32={self.tf32}: torch's flags for products and convolutions are {flags}")
        asked = self._dtypes(site)
        numbers: dict[str, int | float | str] = {}
        for name, module in parts(pipe).items():
            _check(name, module, want := asked.get(name, asked["default"]))
            numbers[name] = _short(want)
            numbers[f"{name}_parameters"] = sum(_floating(module).values())
        dtypes = ", ".join(f"{name} {numbers[name]}" for name in parts(pipe))
        return Effect(f"{dtypes}; TF32 {'on' if self.tf32 else 'off'}", numbers)

    def _dtypes(self, site: Site) -> dict[str, torch.dtype]:
        import torch

        dtypes = {"default": getattr(torch, self.dtype)}
        if site.model.vae is not None:
            dtypes[site.model.vae] = getattr(torch, self.vae_dtype(site))
        return dtypes


def _casting(decode: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    @functools.wraps(decode)
    def cast_and_decode(z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return decode(z.to(dtype), *args, **kwargs)

    return cast_and_decode


def _floating(module: nn.Module) -> Counter[torch.dtype]:
    """How many numbers a module holds per floating dtype; tensor subclasses (quantized weights) are left out."""
    import torch

    counts: Counter[torch.dtype] = Counter()
    for parameter in module.parameters():
        if type(parameter) in (torch.nn.Parameter, torch.Tensor) and parameter.is_floating_point():
            counts[parameter.dtype] += parameter.numel()
    return counts


def _check(name: str, module: nn.Module, dtype: torch.dtype) -> None:
    """Raise NoEffect where weights have another dtype than the one asked for (or float32 where the class keeps it)."""
    import torch

    allowed = {dtype}
    if getattr(module, "_keep_in_fp32_modules", None):
        allowed.add(torch.float32)
    if wrong := {d: n for d, n in _floating(module).items() if d not in allowed}:
        held = ", ".join(f"{count} in {_short(found)}" for found, count in wrong.items())
        raise NoEffect(f"precision: {name} was to be {_short(dtype)}, but holds {held}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
