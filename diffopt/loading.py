"""A recipe's model as a diffusers pipeline, before any optimization."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diffopt.errors import DiffoptError, Refusal
from diffopt.model_files import model_folder
from diffopt.model_index import LEFT_OUT

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

    from diffopt.recipe import Model


def load_pipeline(model: Model, task: str, *, device: str, dtype: Mapping[str, torch.dtype]) -> DiffusionPipeline:
    """The pipeline of ``model`` for ``task``, in evaluation mode, without progress bars and without safety checker.

    ``dtype`` maps component names, and ``default``, to dtypes. Pretrained weights are loaded on the CPU, safetensors
    only, and the memory step places them; random ones are drawn on ``device``. No code of a model is ever run.

    Raises:
        Refusal: this machine lacks what is needed: the hub, access to a gated model, a package.
        DiffoptError: the hub has no such model, or its files or those of a folder cannot be loaded.
    """
    cls = _pipeline_class(getattr(model.pipelines, task))
    with _explaining(model):
        pipe = _random(model, cls, device, dtype) if model.weights == "random" else _pretrained(model, cls, dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _pipeline_class(name: str) -> Any:
    import diffusers

    cls = getattr(diffusers, name, None)
    if not isinstance(cls, type) or not issubclass(cls, diffusers.DiffusionPipeline):
        raise Refusal(f"diffusers {diffusers.__version__} has no pipeline class {name}")
    return cls


@contextmanager
def _explaining(model: Model) -> Iterator[None]:
    """Errors of the libraries in one sentence where their cause is known; any other keeps its type, and gets a note."""
    try:
        yield
    except ImportError as error:
        raise Refusal(f"{_source(model)} needs a package that is not here: {_one_line(error)}") from error
    except (OSError, ValueError) as error:  # what diffusers and huggingface_hub raise for files
        raise _failure(model, error) from error
    except Exception as error:
        error.add_note(f"loading {_source(model)}")
        raise


def _random(model: Model, cls: Any, device: str, dtype: Mapping[str, torch.dtype]) -> DiffusionPipeline:
    from diffopt.random_weights import random_pipeline

    folder = model_folder(model)
    assert folder is not None, "random weights are always described by files here"
    return random_pipeline(folder, cls, device=device, dtype=dtype)


def _pretrained(model: Model, cls: Any, dtype: Mapping[str, torch.dtype]) -> DiffusionPipeline:
    folder = model_folder(model)
    accepted = inspect.signature(cls.__init__).parameters
    without: dict[str, Any] = dict.fromkeys(LEFT_OUT & accepted.keys())
    if "requires_safety_checker" in accepted:
        without["requires_safety_checker"] = False
    if folder is None:
        source: dict[str, Any] = {"pretrained_model_name_or_path": model.id, "revision": model.revision}
    else:
        source = {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
    with _no_loading_bars():
        pipe: DiffusionPipeline = cls.from_pretrained(
            **source, variant=model.variant, dtype=dict(dtype), use_safetensors=True, **without
        )
    return pipe


def _source(model: Model) -> str:
    """Where the model comes from, in words."""
    if model_folder(model) is not None:
        return f"model={model.name} ({model.path or model.architecture})"
    return f"{model.id} (revision {model.revision or 'main'})"


def _failure(model: Model, error: BaseException) -> DiffoptError:
    """One sentence for what went wrong, as a Refusal where this machine lacks something."""
    source, causes = _source(model), list(_chain(error))
    known = None if model_folder(model) is not None else _missing_on_the_hub(source, model, causes)
    return known or DiffoptError(f"{source} cannot be loaded: {_one_line(error)}")


def _missing_on_the_hub(source: str, model: Model, causes: list[BaseException]) -> DiffoptError | None:
    """What the hub or the network lacks, if it is that; diffusers wraps the hub's own error once or twice."""
    from huggingface_hub import errors

    def any_is(kind: type[BaseException]) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    def any_says(word: str) -> bool:
        return any(word in str(cause) for cause in causes)

    if any_is(errors.GatedRepoError):
        return Refusal(f"{source} is gated on the hub: accept its terms on its page, then log in with `hf auth login`")
    if any_is(errors.RepositoryNotFoundError):
        return DiffoptError(
            f"{source} is not on the hub, or is private: check model.id, or log in with `hf auth login`"
        )
    if any_is(errors.RevisionNotFoundError):
        return DiffoptError(f"{source}: the hub has no such revision of it; check model.revision")
    if any_says("safetensors"):
        return DiffoptError(
            f"{source} has no safetensors weights (variant {model.variant or 'none'}), and pickles are not loaded; "
            "choose another model.variant or model.revision"
        )
    if any_says("variant"):
        return DiffoptError(
            f"{source} has no files of the variant {model.variant}; check model.variant, or set it to null"
        )
    if any_is(errors.LocalEntryNotFoundError) or any_says("not fully cached"):
        return Refusal(  # offline, no network, or the hub is down
            f"{source} is not in this machine's cache and the hub cannot be reached; model.weights=random measures the "
            "same architecture without a download where it is built in"
        )
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


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
