"""The words by which options name parts of a pipeline, and the modules they stand for.

====================  =====================================================================
``denoiser``          the UNet or transformer, ``site.model.denoiser``, and a ControlNet
                      beside it: what runs in every denoising step
``vae``               the autoencoder, ``site.model.vae``
``text_encoders``     every text encoder, ``site.model.text_encoders``
====================  =====================================================================
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from diffopt.errors import Refusal

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn

    from diffopt.recipe import Model
    from diffopt.step import Site

# parts that diffusers itself defines; text encoders come from transformers and have their own attention
DiffusersComponent = Literal["denoiser", "vae"]
DiffusersComponents = Annotated[tuple[DiffusersComponent, ...], Field(min_length=1)]
Component = Literal["denoiser", "vae", "text_encoders"]
Components = Annotated[tuple[Component, ...], Field(min_length=1)]


def attributes(model: Model, component: Component) -> tuple[str, ...]:
    """The pipeline attributes that a word stands for; empty where the model has no such part."""
    match component:
        case "denoiser":
            return (model.denoiser,) if model.controlnet is None else (model.denoiser, "controlnet")
        case "vae":
            return () if model.vae is None else (model.vae,)
        case "text_encoders":
            return model.text_encoders


def missing(site: Site, components: Iterable[Component], key: str) -> tuple[str, ...]:
    """One reason per word that this model has no part for; ``key`` is the setting that named it."""
    model = site.model
    return tuple(f"{key}={word}: model {model.name} has none" for word in components if not attributes(model, word))


def modules(pipe: DiffusionPipeline, site: Site, components: Iterable[Component], key: str) -> dict[str, nn.Module]:
    """The modules that the words stand for, by attribute name.

    Raises Refusal, naming ``key``, where the model or this pipeline object lacks one.
    """
    words = tuple(components)
    if reasons := missing(site, words, key):
        raise Refusal("; ".join(reasons))
    found: dict[str, nn.Module] = {}
    for word in words:
        for name in attributes(site.model, word):
            module = getattr(pipe, name, None)
            if module is None:
                raise Refusal(f"{key}={word}: this {type(pipe).__name__} has no {name}")
            found[name] = module
    return found


def parts(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """Every component of the pipeline that holds weights, by attribute name."""
    from torch import nn

    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
