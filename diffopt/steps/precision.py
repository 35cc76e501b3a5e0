"""Computing precision: the dtype of the weights, and whether float32 matrix products may be rounded to TF32."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from diffopt.errors import NoEffect, Refusal
from diffopt.models import classes
from diffopt.schema.step import Effect, Order, Requirements, Site, Step, register
from diffopt.steps.components import Component, attributes, parts

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_DECODED_IN = "_diffopt_decoded_in"  # attribute of the VAE: the dtype that its decoder last gave; None: not called


@register("precision")
class Precision(Step):
    """Load all weights in ``dtype``, the VAE perhaps in another.

    ``vae: auto`` is float32 where float16 is asked for and the model's VAE overflows in it (SDXL decodes to black), or
    where the model's VAE is always kept in float32 (Wan), else ``dtype``. ``encode`` and ``decode`` cast their input,
    since pipelines hand them ``dtype``, and ``decode`` notes what it computed in. SDXL's pipelines would widen and
    narrow the VAE inside each call, and so undo the choice: that is switched off, and not in what is saved. Text
    encoders that overflow in float16 are loaded in bfloat16.
    ``tf32`` is set for matrix products and convolutions alike, also to false: torch leaves it on for convolutions,
    so that its own float32 is not IEEE float32.
    """

    order: ClassVar[Order] = Order.LOAD
    kind: Literal["dtype"]
    dtype: Literal["float32", "float16", "bfloat16"]
    vae: Literal["auto", "float32", "float16", "bfloat16"]
    tf32: bool

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
        limits = site.model.limits
        overflows = self.dtype == "float16" and limits.fp16_vae_overflows
        return "float32" if overflows or limits.vae_float32 else self.dtype

    def dtype_of(self, part: str, site: Site) -> str:
        if part == "vae":
            return self.vae_dtype(site)
        return "bfloat16" if part == "text_encoders" and self._text_in_bfloat16(site) else self.dtype

    def problems(self, site: Site) -> tuple[str, ...]:
        why = f"no part of {site.model.name} computes in float32"
        idle = f"precision.tf32=true rounds nothing, since {why} (set it to false)"
        return (*self._overflows(site), *([idle] if self._rounds_nothing(site) else []))

    def _overflows(self, site: Site) -> Iterator[str]:
        if self.dtype == "float16" and site.model.limits.fp16_overflows:
            yield f"the {site.model.denoiser} of {site.model.name} overflows in float16; choose precision=bf16"
        if self.vae == "float16" and site.model.limits.fp16_vae_overflows:
            yield "precision.vae=float16: this model's VAE overflows in float16 and gives black; set it to auto"

    def _rounds_nothing(self, site: Site) -> bool:
        """Whether TF32 will certainly do nothing: no stage has a part in float32, or layers that may be kept in it."""
        stages = site.cascade or (site.model,)
        if not self.tf32 or site.model != stages[0]:
            return False
        for stage in stages:
            at = replace(site, model=stage)
            dtypes = {part: self.dtype_of(part, at) for part in get_args(Component) if attributes(stage, part)}
            # transformers keeps layers of T5 in float32 where the others are in float16
            kept = (
                classes.denoiser_class_record(stage.denoiser_class).keeps_float32
                or dtypes.get("text_encoders") == "float16"
            )
            if kept or "float32" in dtypes.values():
                return False
        return True

    def weight_bytes(self, part: str, site: Site) -> float:
        return _BYTES[self.dtype_of(part, site)]

    def load_kwargs(self, site: Site) -> dict[str, Any]:
        """``{"dtype": {"default": …, "vae": …}}``: torch dtypes by component, as ``from_pretrained`` takes them."""
        return {"dtype": self._dtypes(site)}

    def check_loaded(self, pipe: DiffusionPipeline, site: Site) -> None:
        asked = self._dtypes(site)
        for name, module in parts(pipe).items():
            _check_dtype(name, module, asked.get(name, asked["default"]))

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        import torch

        if self.tf32 and not site.cascade and not _multiplies_in_float32(pipe):  # a stage's flags are those of all
            raise Refusal("precision.tf32=true: no weight of this pipeline is in float32; set it to false")
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.allow_tf32 = self.tf32
        if self._text_in_bfloat16(site):
            _replace(pipe, "encode_prompt", _encode_prompt_in, getattr(torch, self.dtype))
        if site.model.vae is None:
            return
        vae: Any = getattr(pipe, site.model.vae)
        # Pipelines read the attribute; files and other classes are made of the item, which stays as it was loaded.
        if vae.config.get("force_upcast"):
            vars(vae.config)["force_upcast"] = False
        dtype = getattr(torch, self.vae_dtype(site))
        _replace(vae, "encode", _encode_in, dtype)
        _replace(vae, "decode", _decode_in, dtype)
        setattr(vae, _DECODED_IN, None)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        import torch

        flags = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
        if flags != (self.tf32, self.tf32):
            raise NoEffect(f"precision.tf32={self.tf32}: torch's flags for products and convolutions are {flags}")
        self.check_loaded(pipe, site)
        asked = self._dtypes(site)
        numbers: dict[str, int | float | str] = {}
        for name, module in parts(pipe).items():
            numbers[name] = dtype_name(asked.get(name, asked["default"]))
            numbers[f"{name}_parameters"] = sum(parameter.numel() for _, parameter in _plain_floats(module))
        if site.model.vae is not None:
            _check_decoded(site.model.vae, getattr(pipe, site.model.vae), asked[site.model.vae])
        dtypes = ", ".join(f"{name} {numbers[name]}" for name in parts(pipe))
        return Effect(f"{dtypes}; TF32 {'on' if self.tf32 else 'off'}", numbers)

    def _dtypes(self, site: Site) -> dict[str, torch.dtype]:
        import torch

        dtypes = {"default": getattr(torch, self.dtype)}
        if site.model.vae is not None:
            dtypes[site.model.vae] = getattr(torch, self.vae_dtype(site))
        if self._text_in_bfloat16(site):
            dtypes |= dict.fromkeys(site.model.text_encoders, torch.bfloat16)
        return dtypes

    def _text_in_bfloat16(self, site: Site) -> bool:
        return self.dtype == "float16" and site.model.limits.fp16_text_overflows


def _replace(owner: Any, name: str, by: Callable[..., Any], dtype: torch.dtype) -> None:
    """Let ``owner.name(…)`` call ``by(owner, inner, dtype, …)``, where ``inner`` is what another step put there.

    Neither a closure nor a bound method, so that a pipeline that is copied or pickled calls its own parts.
    """
    setattr(owner, name, functools.partial(by, owner, vars(owner).get(name), dtype))


def _encode_prompt_in(pipe: Any, inner: Callable[..., Any] | None, dtype: torch.dtype, *args: Any, **kw: Any) -> Any:
    """``pipe.encode_prompt`` that gives embeddings in the denoiser's dtype; Flux hands on those of its encoders."""
    import torch
    from torch.utils._pytree import tree_map_only

    def cast(found: torch.Tensor) -> torch.Tensor:
        return found.to(dtype) if found.is_floating_point() else found

    found = type(pipe).encode_prompt(pipe, *args, **kw) if inner is None else inner(*args, **kw)
    return tree_map_only(torch.Tensor, cast, found)


def _encode_in(
    vae: Any, inner: Callable[..., Any] | None, dtype: torch.dtype, x: torch.Tensor, *args: Any, **kw: Any
) -> Any:
    """``vae.encode`` for pictures of any dtype. The latents come in that of the pictures, as of a VAE that is no wider:
    most pipelines hand them on to the denoiser as they are."""
    from torch.utils._pytree import tree_map

    out = type(vae).encode(vae, x.to(dtype), *args, **kw) if inner is None else inner(x.to(dtype), *args, **kw)
    return out if x.dtype == dtype else tree_map(functools.partial(_latents_in, dtype=x.dtype), out)


def _latents_in(found: Any, *, dtype: torch.dtype) -> Any:
    """Latents in another dtype, or a distribution that gives them so: what is drawn is rounded, not the drawing."""
    for name in ("sample", "mode"):
        if hasattr(found, name):
            setattr(found, name, functools.partial(_called_in, getattr(found, name), dtype))
    return found.to(dtype) if hasattr(found, "to") else found


def _called_in(inner: Callable[..., torch.Tensor], dtype: torch.dtype, *args: Any, **kw: Any) -> torch.Tensor:
    return inner(*args, **kw).to(dtype)


def _decode_in(
    vae: Any, inner: Callable[..., Any] | None, dtype: torch.dtype, z: torch.Tensor, *args: Any, **kw: Any
) -> Any:
    """``vae.decode`` for latents of any dtype; notes the dtype of the picture, which is that of the last products."""
    out = type(vae).decode(vae, z.to(dtype), *args, **kw) if inner is None else inner(z.to(dtype), *args, **kw)
    setattr(vae, _DECODED_IN, out[0].dtype)  # a tuple, or an output that is indexed like one
    return out


def _check_decoded(name: str, vae: nn.Module, dtype: torch.dtype) -> None:
    """Raise NoEffect where the decoder computed in another dtype, or was never called."""
    found: torch.dtype | None = getattr(vae, _DECODED_IN)
    if found is None:
        raise NoEffect(f"precision: {name}.decode was not called, so what it computes in is not known")
    if found != dtype:
        raise NoEffect(f"precision: {name} was to compute in {dtype_name(dtype)}, but decoded in {dtype_name(found)}")


def _multiplies_in_float32(pipe: DiffusionPipeline) -> bool:
    """Whether a part has weights of products or convolutions in float32."""
    import torch

    weights = (weight for part in parts(pipe).values() for _, weight in _plain_floats(part))
    return any(weight.dtype == torch.float32 and weight.ndim > 1 for weight in weights)


def _plain_floats(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Floating parameters by path; left out are quantized weights: tensor subclasses, and what is stored in float8."""
    import torch

    for path, parameter in module.named_parameters():
        plain = type(parameter) in (torch.nn.Parameter, torch.Tensor) and parameter.is_floating_point()
        if plain and parameter.dtype.itemsize > 1:
            yield path, parameter


def _check_dtype(name: str, module: nn.Module, dtype: torch.dtype) -> None:
    """Raise NoEffect where weights have another dtype than the one asked for, or float32 where their class keeps it."""
    import torch

    wrong: Counter[torch.dtype] = Counter()
    for path, parameter in _plain_floats(module):
        if parameter.dtype != dtype and not (parameter.dtype == torch.float32 and _kept(module, path)):
            wrong[parameter.dtype] += parameter.numel()
    if wrong:
        held = ", ".join(f"{count} in {dtype_name(found)}" for found, count in wrong.items())
        raise NoEffect(f"precision: {name} was to be {dtype_name(dtype)}, but holds {held}")


def _kept(module: nn.Module, path: str) -> bool:
    """Whether diffusers or transformers keep this parameter in float32, whatever is asked for."""
    kept = [getattr(module, key, None) or () for key in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")]
    names = [name for some in kept for name in ([some] if isinstance(some, str) else some)]  # diffusers takes both
    return any(f".{name}." in f".{path}." for name in names)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
