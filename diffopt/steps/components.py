"""The words by which options name parts of a pipeline, and the modules they stand for.

====================  =====================================================================
``denoiser``          the UNet or transformer, ``site.model.denoiser``, and a ControlNet
                      beside it: what runs in every denoising step
``vae``               the autoencoder, ``site.model.vae``
``vae_decode``        the same, in steps that are about its ``decode`` alone
``text_encoders``     every text encoder, ``site.model.text_encoders``
====================  =====================================================================

Of a cascade's stages, each has some of them: a word that no stage has a part for is refused, and a stage without the
part is left as it is. The proof is then that of the other stages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from diffopt.errors import Refusal
from diffopt.schema.step import Effect

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn

    from diffopt.schema.model import Model
    from diffopt.schema.step import Site, Step

# what plug-ins may rely on
__all__ = [
    "Component",
    "Components",
    "DiffusersComponent",
    "DiffusersComponents",
    "Word",
    "attributes",
    "missing",
    "modules",
    "parts",
]


def _each_once(words: tuple[str, ...]) -> tuple[str, ...]:
    """Two spellings of one pipeline would be two cells."""
    if twice := [word for word in dict.fromkeys(words) if words.count(word) > 1]:
        raise PydanticCustomError("named_twice", "names {word} twice; once is enough", {"word": twice[0]})
    return words


SomeParts = (Field(min_length=1), AfterValidator(_each_once))  # what holds for every list of parts
# parts that diffusers itself defines; text encoders come from transformers and have their own attention
DiffusersComponent = Literal["denoiser", "vae"]
DiffusersComponents = Annotated[tuple[DiffusersComponent, ...], *SomeParts]
Component = Literal["denoiser", "vae", "text_encoders"]
Components = Annotated[tuple[Component, ...], *SomeParts]
Word = Literal["denoiser", "vae", "vae_decode", "text_encoders"]


def attributes(model: Model, word: Word) -> tuple[str, ...]:
    """The pipeline attributes that a word stands for; empty where the model has no such part."""
    match word:
        case "denoiser":
            return (model.denoiser,) if model.controlnet is None else (model.denoiser, "controlnet")
        case "vae" | "vae_decode":
            return () if model.vae is None else (model.vae,)
        case "text_encoders":
            return model.text_encoders


def missing(site: Site, components: Iterable[Word], key: str) -> tuple[str, ...]:
    """One reason per word that the model has no part for; ``key`` is the setting that named it.

    Of a cascade: that no stage has a part for. Its first stage gives the reasons for all of them.
    """
    return () if site.cascade and site.model != site.cascade[0] else _reasons(site, tuple(components), key)


def _reasons(site: Site, words: tuple[Word, ...], key: str) -> tuple[str, ...]:
    first, *later = site.cascade or (site.model,)
    found = [word for word in words if any(attributes(stage, word) for stage in (first, *later))]
    fact = f"no stage of {first.name} has one" if later else f"model {first.name} has none"
    remedy = f", {key}=[{', '.join(found)}] leaves it out" if found else ""
    return tuple(f"{key}={word}: {fact}{remedy}" for word in words if word not in found)


def passes_over(step: Step, site: Site) -> Effect | None:
    """What is said of a step at a stage that has none of its ``components``, where another stage has one; else None."""
    words = getattr(step, "components", None) or ()
    if not set(words) <= set(get_args(Word)):  # a step may have components of another kind, such as a LoRA's
        return None
    if any(attributes(site.model, word) for word in words):
        return None
    if not any(attributes(stage, word) for stage in site.cascade for word in words):
        return None
    return Effect(f"{site.model.name} has no {' or '.join(words)} and is left as it is")


def modules(pipe: DiffusionPipeline, site: Site, components: Iterable[Word], key: str) -> dict[str, nn.Module]:
    """The modules that the words stand for, by attribute name; none of a word that only other stages have a part for.

    Raises Refusal, naming ``key``, where the model, or every stage of its cascade, or this pipeline object lacks one.
    """
    words = tuple(components)
    if reasons := _reasons(site, words, key):
        raise Refusal("; ".join(reasons))
    found: dict[str, nn.Module] = {}
    for word in words:
        for name in attributes(site.model, word):
            module = getattr(pipe, name, None)
            if module is None:
                raise Refusal(f"{key}={word}: this {type(pipe).__name__} has no {name}")
            found[name] = module
    return found


@dataclass(frozen=True)
class NotCopied:
    """Lies on a module whose ``forward`` calls that very module: a copy would compute with the original's weights, or
    with none, so that to copy or to pickle it raises Refusal."""

    key: str  # the option that put the calls there

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise Refusal(
            f"{self.key}: what it put on a module belongs to that module, and a copy would go on calling the original; "
            "load the pipeline once more instead of copying it"
        )


def refuse_copies(module: nn.Module, key: str) -> None:
    """Let ``copy.deepcopy`` and ``pickle`` of the module, and of what holds it, raise Refusal, naming ``key``."""
    group = key.partition("=")[0].partition(".")[0]
    setattr(module, f"_diffopt_not_copied_{group}", NotCopied(key))


def parts(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """Every component of the pipeline that holds weights, by attribute name."""
    from torch import nn

    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
