"""A recipe's model as a diffusers pipeline, before any optimization."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diffopt.errors import Refusal
from diffopt.model_files import LEFT_OUT, model_folder

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

    from diffopt.recipe import Model


def load_pipeline(model: Model, task: str, *, device: str, dtype: Mapping[str, torch.dtype]) -> DiffusionPipeline:
    """The pipeline of ``model`` for ``task``, in evaluation mode, without progress bars and without safety checker.

    ``dtype`` maps component names, and ``default``, to dtypes. Pretrained weights are loaded on the CPU, safetensors
    only, and the memory step places them; random ones are drawn on ``device``. No code of a model is ever run.
    Raises Refusal when the weights cannot be had.
    """
    cls = _pipeline_class(getattr(model.pipelines, task))
    if model.weights == "random":
        from diffopt.random_weights import random_pipeline

        folder = model_folder(model)
        assert folder is not None, "random weights are always described by files here"
        pipe = random_pipeline(folder, cls, device=device, dtype=dtype)
    else:
        pipe = _pretrained(model, cls, dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _pipeline_class(name: str) -> Any:
    import diffusers

    try:
        return getattr(diffusers, name)
    except AttributeError:
        raise Refusal(f"diffusers {diffusers.__version__} has no pipeline class {name}") from None


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
    try:
        with _no_loading_bars():
            return cls.from_pretrained(
                **source, variant=model.variant, dtype=dict(dtype), use_safetensors=True, **without
            )
    except (OSError, ValueError) as error:  # what diffusers and huggingface_hub raise; a bug of ours is neither
        raise Refusal(_why_not_loaded(model, error)) from error


def _why_not_loaded(model: Model, error: BaseException) -> str:
    """One sentence for what went wrong; diffusers wraps the hub's own error once or twice."""
    from huggingface_hub import errors

    if model.path is not None or model.id is None:
        return f"model={model.name}: {model.path or model.architecture} cannot be loaded: {_one_line(error)}"
    source = f"{model.id} (revision {model.revision or 'main'})"
    causes = list(_chain(error))

    def any_is(kind: type[BaseException]) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    if any_is(errors.GatedRepoError):
        return f"{source} is gated on the hub: accept its terms on its page, then log in with `hf auth login`"
    if any_is(errors.RepositoryNotFoundError):
        return f"{source} is not on the hub, or is private: check model.id, or log in with `hf auth login`"
    if any_is(errors.RevisionNotFoundError):
        return f"{source}: the hub has no such revision of it; check model.revision"
    if any("safetensors" in str(cause) for cause in causes):
        return (
            f"{source} has no safetensors weights (variant {model.variant or 'none'}), and pickles are not loaded; "
            "choose another model.variant or model.revision"
        )
    if any("variant" in str(cause) for cause in causes):
        return f"{source} has no files of the variant {model.variant}; check model.variant, or set it to null"
    if any_is(errors.LocalEntryNotFoundError) or any("not fully cached" in str(cause) for cause in causes):
        return (  # offline, no network, or the hub is down
            f"{source} is not in this machine's cache and the hub cannot be reached; model.weights=random measures the "
            "same architecture without a download where it is built in"
        )
    return f"{source} cannot be loaded: {_one_line(error)}"


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
