"""What a repository on the Hugging Face hub says about its model, without downloading its weights. Imports no torch.

Answers of the hub are kept in its own cache, where they are found again without a network.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffopt.errors import DiffoptError, Refusal, UsageError
from diffopt.models.facts import read_model_facts
from diffopt.models.index import IndexEntry, ModelIndex, read_model_index
from diffopt.models.weights import Weights, find_weights, read_weights, weights_of
from diffopt.schema.words import one_line

# Enough to plan with; tokenizers are megabytes, and wait for the download of the weights.
SMALL_FILES = (
    "model_index.json",
    "config.json",
    "*/config.json",
    "*/scheduler_config.json",
    "*/tokenizer_config.json",
    "*/preprocessor_config.json",
    "*/processor_config.json",
    "*.safetensors.index*.json",
)
AT_ONCE = 8  # headers of safetensors files that are asked for in parallel


@dataclass(frozen=True)
class Repository:
    """A repository at one revision, with its small files in the cache."""

    id: str
    revision: str | None
    folder: Path  # of the cache; its name is the commit
    sizes: Mapping[str, int] | None  # bytes by name of the file; None: the hub is out of reach
    licence: str | None
    gated: bool | None

    @property
    def commit(self) -> str:
        return self.folder.name

    @property
    def files(self) -> frozenset[str]:
        """Names of all files; out of the hub's reach, of those in the cache."""
        if self.sizes is not None:
            return frozenset(self.sizes)
        return frozenset(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors about the files say the repository, and not the place in the cache."""
        try:
            yield
        except UsageError as error:
            raise UsageError(str(error).replace(str(self.folder), self.id)) from None

    def index(self) -> ModelIndex:
        """Of a pipeline. Raises UsageError where the repository has none, or a malformed one."""
        if "model_index.json" not in self.files:
            raise UsageError(
                f"{hub_repository_in_words(self.id, self.revision)} has no model_index.json, so it is not a "
                "diffusers pipeline; give the repository of the whole pipeline"
            )
        with self.named():
            return read_model_index(self.folder, self.files)

    def index_of_one_model(self, class_name: str) -> ModelIndex:
        """Of a repository that holds one model of diffusers, such as a ControlNet, in its top folder."""
        return ModelIndex(self.folder, class_name, {"": IndexEntry("diffusers", class_name)}, files=self.files)


def hub_repository_in_words(model_id: str, revision: str | None) -> str:
    """A repository in words."""
    return f"{model_id} (revision {revision or 'main'})"


def model_facts_told_by_hub(data: Mapping[str, Any]) -> dict[str, Any]:
    """Facts about the pipeline ``data["id"]``, with the keys of the ``model`` group.

    Without a network they come from the cache; what the weights would say is null where they are not there yet.
    Raises UsageError and Refusal as :func:`open_hub_repository`.
    """
    repository = open_hub_repository(data["id"], data["revision"])
    index = repository.index()
    if data["embeddings"] is not None:
        index = index.without_text()
    with repository.named():
        weights = _read_weights(repository, index, data["variant"])
        beside = data["controlnet"]
        if beside is not None and beside.get("id") and weights is not None:
            weights = _with_controlnet(weights, beside)
        facts = read_model_facts(index, weights, data)
    return {**facts, "licence": repository.licence, "gated": repository.gated}


def open_hub_repository(model_id: str, revision: str | None) -> Repository:
    """The repository, with its small files in the cache.

    Raises:
        UsageError: there is no such repository, or no such revision of it.
        Refusal: it is gated, or neither in the cache nor within reach.
    """
    from huggingface_hub import HfApi, snapshot_download

    said = hub_repository_in_words(model_id, revision)
    with explaining_hub_errors(said), quiet_hub():
        info = _reached(lambda: HfApi().model_info(model_id, revision=revision, files_metadata=True))
        folder = snapshot_download(
            model_id, revision=revision, allow_patterns=list(SMALL_FILES), local_files_only=info is None
        )
    if info is None:
        return Repository(model_id, revision, Path(folder), None, None, None)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    licence = next((tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")), None)
    gated = None if info.gated is None else bool(info.gated)
    return Repository(model_id, revision, Path(folder), sizes, licence, gated)


def _reached(ask: Callable[[], Any]) -> Any:
    """The hub's answer; None when it cannot be reached, and only its cache can help."""
    from huggingface_hub import errors

    try:
        return ask()
    except errors.HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise
        return None
    except (errors.OfflineModeIsEnabled, errors.HTTPError):  # type: ignore[attr-defined]
        return None


def _read_weights(repository: Repository, index: ModelIndex, variant: str | None) -> dict[str, Weights] | None:
    """What the headers of the weights say, read from the cache or over the network; None where neither can."""
    try:
        found = find_weights(index, variant)
    except UsageError:
        if repository.sizes is None:  # not downloaded yet
            return None
        raise
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            jobs = {name: pool.submit(_header_of_files, repository, files) for name, files in found.items()}
            return {name: job.result() for name, job in jobs.items()}
    except (OSError, ConnectionError):
        return None


def _header_of_files(repository: Repository, files: tuple[Path, ...]) -> Weights:
    if all(file.exists() for file in files):
        return read_weights(files)
    from huggingface_hub import HfApi, errors

    counts: dict[str, int] = {}
    for file in files:
        name = file.relative_to(repository.folder).as_posix()
        try:
            told = HfApi().parse_safetensors_file_metadata(repository.id, name, revision=repository.commit)
        except errors.SafetensorsParsingError:
            raise UsageError(f"{file} is not a safetensors file") from None
        except errors.HTTPError as error:  # type: ignore[attr-defined]
            raise ConnectionError(str(error)) from None
        for dtype, number in told.parameter_count.items():
            counts[dtype] = counts.get(dtype, 0) + number
    return weights_of(files, counts)


def _with_controlnet(weights: dict[str, Weights], controlnet: Mapping[str, Any]) -> dict[str, Weights] | None:
    """The ControlNet's weights too, from a repository of its own."""
    repository = open_hub_repository(controlnet["id"], controlnet.get("revision"))
    with repository.named():
        told = _read_weights(
            repository, repository.index_of_one_model(controlnet["class_name"]), controlnet.get("variant")
        )
    return None if told is None else {**weights, "controlnet": told[""]}


@contextmanager
def explaining_hub_errors(said: str) -> Iterator[None]:
    """Errors of huggingface_hub about the repository ``said``, in one paragraph.

    A UsageError where the hub has no such thing, a Refusal where this machine lacks access or a network, and a
    DiffoptError where a download failed.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise Refusal(
            f"{said} is gated on the hub: accept its terms on its page, then log in with `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UsageError(
            f"{said} is not on the hub, or is private: check model.id, or log in with `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise UsageError(f"{said}: the hub has no such revision of it; check model.revision") from None
    except errors.HFValidationError as error:
        raise UsageError(f"model.id: {one_line(error)}") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise Refusal(
            f"{said} is not in this machine's cache and the hub cannot be reached; `diffopt prefetch` fetches it where "
            "there is a network"
        ) from None
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise DiffoptError(f"{said} cannot be downloaded: {str(error).strip().splitlines()[0]}") from None


@contextmanager
def quiet_hub() -> Iterator[None]:
    """No bars and warnings of huggingface_hub; its settings are the process's, so put back."""
    from huggingface_hub.utils import logging as words
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    level, bars = words.get_verbosity(), not are_progress_bars_disabled()
    words.set_verbosity(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        words.set_verbosity(level)
        if bars:
            enable_progress_bars()
