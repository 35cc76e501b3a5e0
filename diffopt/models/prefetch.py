"""Downloads what a model needs from the hub, and nothing else: no pickles, no other variants, no safety checker.

Imports no torch. What is in the hub's cache already is not fetched again, and offline the cache is all there is.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from diffopt.errors import Refusal, UsageError
from diffopt.models.hub import (
    Repository,
    explaining_hub_errors,
    hub_repository_in_words,
    open_hub_repository,
    quiet_hub,
)
from diffopt.models.index import CONFIG_SUFFIXES, ModelIndex
from diffopt.models.weights import find_weights, read_weights
from diffopt.schema.model import Model


class Target(NamedTuple):
    """What one repository is asked for."""

    id: str
    revision: str | None
    variant: str | None
    alone: str | None  # class of the only model in the repository, such as a ControlNet; None: a pipeline
    with_text: bool  # text encoders and tokenizers too


@dataclass(frozen=True)
class Fetched:
    """A repository in this machine's cache, as far as the target needs it."""

    target: Target
    folder: Path
    size: int  # bytes

    @property
    def commit(self) -> str:
        return self.folder.name


def pipeline_target(model: Model) -> Target | None:
    """The repository that the pipeline itself comes from; None where its files are here, or weights are drawn."""
    if model.weights != "pretrained" or model.path is not None or model.id is None:
        return None
    return Target(model.id, model.revision, model.variant, None, model.embeddings is None)


def controlnet_target(model: Model) -> Target | None:
    """The repository of the ControlNet beside it; None where it has none of its own."""
    beside = model.controlnet
    if model.weights != "pretrained" or beside is None or beside.id is None:
        return None
    return Target(beside.id, beside.revision, beside.variant, beside.class_name, False)


def prefetch_targets(model: Model) -> Iterator[Target]:
    """Everything that ``model`` and the later stages of its cascade need from the hub."""
    for stage in model.stages:
        for target in (pipeline_target(stage), controlnet_target(stage)):
            if target is not None:
                yield target


def cached_folder_of_target(target: Target) -> Path | None:
    """The repository's folder in this machine's cache, as far as it is there; None: nothing of it. Asks no hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(target.id, revision=target.revision, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        return None


def fetch_target_from_hub(target: Target) -> Fetched:
    """Download what the target needs and the cache lacks.

    Raises:
        UsageError: the hub has no such repository or revision, or it has no safetensors.
        Refusal: it is gated, or out of reach and not in the cache.
        DiffoptError: the download failed.
    """
    from huggingface_hub import snapshot_download

    repository = open_hub_repository(target.id, target.revision)
    index = repository.index() if target.alone is None else repository.index_of_one_model(target.alone)
    if not target.with_text and target.alone is None:
        index = index.without_text()
    names = _needed(repository, index, target)
    with explaining_hub_errors(hub_repository_in_words(target.id, target.revision)), quiet_hub():
        folder = snapshot_download(
            target.id,
            revision=target.revision,
            allow_patterns=[glob.escape(name) for name in names],
            local_files_only=repository.sizes is None,
        )
    paths = [Path(folder) / name for name in names]
    for path in paths:
        if path.suffix == ".safetensors":
            with repository.named():
                read_weights((path,))
    return Fetched(target, Path(folder), sum(path.stat().st_size for path in paths))


def _needed(repository: Repository, index: ModelIndex, target: Target) -> list[str]:
    """Names of the files that are loaded: configs, tokenizers, and weights of the right variant."""
    try:
        with repository.named():
            weights = [path for files in find_weights(index, target.variant).values() for path in files]
    except UsageError:
        if repository.sizes is not None:
            raise
        raise Refusal(
            f"{hub_repository_in_words(target.id, target.revision)} is not whole in this machine's cache and the hub "
            "cannot be reached; `diffopt prefetch` fetches the rest where there is a network"
        ) from None
    names = {path.relative_to(index.folder).as_posix() for path in weights}
    if target.alone is None:
        names.add("model_index.json")
    for component in index.components:
        start = f"{component}/" if component else ""
        names |= {f"{start}{name}" for name in index.names(component) if _is_config(name)}
    return sorted(names)


def _is_config(name: str) -> bool:
    """Whether a component reads the file beside its weights; lists of shards count where they are of safetensors."""
    return name.endswith(CONFIG_SUFFIXES) and (".index." not in name or ".safetensors.index." in name)
