"""A recipe's model as a diffusers pipeline, before any optimization."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffopt.errors import DiffoptError, Refusal
from diffopt.machine.packages import how_to_install, unmet_packages
from diffopt.models.families import family_of_pipeline
from diffopt.models.hub import hub_repository_in_words
from diffopt.models.index import read_model_index
from diffopt.models.prefetch import Target, controlnet_target, fetch_target_from_hub, pipeline_target
from diffopt.models.random.weights import random_pipeline
from diffopt.models.resolve import model_folder
from diffopt.schema.words import one_line

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

    from diffopt.schema.model import Model


def load_pipeline(model: Model, task: str, *, device: str, dtype: Mapping[str, torch.dtype]) -> DiffusionPipeline:
    """The pipeline of ``model`` for ``task``, in evaluation mode, without progress bars and without safety checker.

    ``dtype`` maps component names, and ``default``, to dtypes. Pretrained weights are loaded on the CPU, safetensors
    only, and the memory step places them; random ones are drawn on ``device``. No code of a model is ever run. Where
    the model has prompt embeddings of its own, text encoders and tokenizers are left out.

    Raises:
        Refusal: this machine lacks what is needed: the hub, access to a gated model, a package.
        DiffoptError: the hub has no such model, or its files or those of a folder cannot be loaded.
    """
    cls = diffusers_class(getattr(model.pipelines, task), "DiffusionPipeline")
    check_packages_of_pipeline(cls)
    with _explaining(model):
        pipe = _pretrained(model, cls, dtype) if model.weights == "pretrained" else _random(model, cls, device, dtype)
    refuse_unknown_parts(model, pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def check_packages_of_pipeline(cls: Any) -> None:
    """Raise Refusal where packages are not here that a pipeline class takes for granted."""
    known = family_of_pipeline(cls.__name__)
    if lacking := unmet_packages(known.packages if known is not None else ()):  # as diffusers looks for them
        raise Refusal(f"{cls.__name__} {how_to_install(lacking)}")


def refuse_unknown_parts(model: Model, pipe: Any) -> None:
    """Raise Refusal where the model's facts name a part that the pipeline has not."""
    vae = () if model.vae is None else (model.vae,)
    for key, names in {"denoiser": (model.denoiser,), "vae": vae, "text_encoders": model.text_encoders}.items():
        if unknown := [name for name in names if name not in pipe.components]:
            parts = ", ".join(sorted(pipe.components))
            raise Refusal(f"model.{key} names {unknown[0]}, which {type(pipe).__name__} has not; its parts: {parts}")


def diffusers_class(name: str, base: str) -> Any:
    """A class of diffusers by its name, such as one of the workload's own pipelines."""
    import diffusers

    cls = getattr(diffusers, name, None)
    if not isinstance(cls, type) or not issubclass(cls, getattr(diffusers, base)):
        what = "pipeline class" if base == "DiffusionPipeline" else "model class"
        raise Refusal(f"diffusers {diffusers.__version__} has no {what} {name}")
    return cls


@contextmanager
def _explaining(model: Model) -> Iterator[None]:
    """Errors of the libraries in one sentence where their cause is known; any other keeps its type, and gets a note."""
    try:
        yield
    except ImportError as error:
        raise Refusal(f"{_source_in_words(model)} needs a package that is not here: {one_line(error)}") from error
    except (OSError, ValueError) as error:  # what diffusers and transformers raise for files
        raise DiffoptError(f"{_source_in_words(model)} cannot be loaded: {one_line(error)}") from error
    except DiffoptError:
        raise
    except Exception as error:
        error.add_note(f"loading {_source_in_words(model)}")
        raise


def _source_in_words(model: Model) -> str:
    """Where the model comes from, in words."""
    if model_folder(model) is not None:
        return f"model={model.name} ({model.path or model.architecture})"
    return hub_repository_in_words(str(model.id), model.revision)


def _random(model: Model, cls: Any, device: str, dtype: Mapping[str, torch.dtype]) -> DiffusionPipeline:
    folder = model_folder(model)
    assert folder is not None, "random weights are always described by files here"
    return random_pipeline(folder, cls, device=device, dtype=dtype, without=absent_parts(model, folder))


def absent_parts(model: Model, folder: Path) -> frozenset[str]:
    """Parts that the folder names and that the pipeline is made without."""
    index = read_model_index(folder)
    return (index if model.embeddings is None else index.without_text()).absent


def _pretrained(model: Model, cls: Any, dtype: Mapping[str, torch.dtype]) -> DiffusionPipeline:
    target, beside = pipeline_target(model), controlnet_target(model)
    folder = model_folder(model) if target is None else _fetched(target)
    assert folder is not None, "what is not on the hub is here"
    accepted = inspect.signature(cls.__init__).parameters
    given: dict[str, Any] = dict.fromkeys(absent_parts(model, folder) & accepted.keys())
    if "requires_safety_checker" in accepted:
        given["requires_safety_checker"] = False
    with _no_loading_bars():
        if beside is not None and "controlnet" in accepted:
            given["controlnet"] = _controlnet(beside, dtype)
        pipe: DiffusionPipeline = cls.from_pretrained(
            str(folder), local_files_only=True, variant=model.variant, dtype=dict(dtype), use_safetensors=True, **given
        )
    return pipe


def _controlnet(target: Target, dtype: Mapping[str, torch.dtype]) -> Any:
    """The ControlNet that has a repository of its own."""
    return diffusers_class(str(target.alone), "ModelMixin").from_pretrained(
        str(_fetched(target)),
        local_files_only=True,
        variant=target.variant,
        dtype=dtype.get("controlnet", dtype["default"]),
        use_safetensors=True,
    )


def _fetched(target: Target) -> Path:
    """The folder of a repository in the cache; its commit goes to the log, for a branch may move on."""
    fetched = fetch_target_from_hub(target)
    print(f"{hub_repository_in_words(target.id, target.revision)}: commit {fetched.commit}")
    return fetched.folder


@contextmanager
def _no_loading_bars() -> Iterator[None]:
    """No bars of diffusers and transformers while components load; their settings are the process's, so put back."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    enabled = [library for library in (of_diffusers, of_transformers) if library.is_progress_bar_enabled()]
    for library in enabled:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in enabled:
            library.enable_progress_bar()
