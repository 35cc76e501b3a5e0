"""What a model's files say, read when a recipe is composed. Imports no torch and loads no weights.

The ``model`` group's YAML may leave facts at null that the component configs tell better: classes, tasks, sizes, what
the weights are stored in. :func:`with_model_facts` fills them in and identifies local files by their content.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffopt.errors import UsageError
from diffopt.machine.content import sha256_of_folder
from diffopt.machine.paths import user_path
from diffopt.models import hub
from diffopt.models.facts import VIDEOS, read_model_facts
from diffopt.models.index import ModelIndex, check_model_files, read_model_index
from diffopt.models.weights import find_weights, read_weights
from diffopt.schema.model import Limits, Model, Parameters
from diffopt.schema.record import Frozen
from diffopt.schema.words import did_you_mean

PACKAGED = Path(__file__).parent / "architectures"
TINY = "tiny"  # folder in that of an architecture: configs of about a million parameters, and their tiny.yaml
OLD_TINY = "tiny_"  # prefix of the options and architectures that earlier stood for weights: tiny
# Keys that are null where a model has no such thing, or where nobody knows.
MAY_BE_NULL = frozenset(
    ("id", "revision", "variant", "path", "architecture", "content", "vae", "vae_head_size", "licence", "gated")
    + ("frames", "frame_step", "fps", "repeated_blocks", "upscale_factor", "controlnet", "embeddings")
)
TEXTS = ("id", "revision", "variant", "path", "architecture", "content", "denoiser", "task")


def with_model_facts(data: dict[str, Any], base: Path) -> dict[str, Any]:
    """The composed ``model`` group with its nulls filled in from the model's files, or from the hub.

    ``data`` has the keys of :class:`Model`, those with a default only where they differ; a relative
    ``path`` counts from ``base``. The result has every key, its ``path`` is absolute, and resolving it once more
    changes nothing and asks no hub. A ``cascade`` is left as it is: each stage is resolved by itself.

    Raises:
        UsageError: keys or files are missing, are not safetensors, contain code, or are not the ones whose ``content``
            is given; the hub has no such repository or revision.
        Refusal: the hub cannot be reached, or wants its terms accepted first.
    """

    def facts_of(given: dict[str, Any]) -> dict[str, Any]:
        folder = _folder(given, base)
        if folder is None:
            return hub.model_facts_told_by_hub(given) if _lacking(given) else {}
        return {**_told_by_folder(folder, given), **({} if given["path"] is None else {"path": str(folder)})}

    return complete_model(data, facts_of)


def complete_model(data: dict[str, Any], facts_of: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """The ``model`` group with its nulls filled in by the facts that ``facts_of`` gives for it, and then by the schema.

    A ``path`` among the facts counts instead of the given one.

    Raises:
        UsageError: keys are missing, or facts without which there is no model.
    """
    _check_keys(data)
    given = {**_defaults(nulls=True), **data}
    facts = facts_of(given)
    resolved = _fill(_fill(given, facts) | {"path": facts.get("path", given["path"])}, _defaults(nulls=False))
    _check_complete(resolved)
    return resolved


def model_folder(model: Model) -> Path | None:
    """Where the files of a resolved model lie on this machine; None when they come from the hub."""
    if model.path is not None:
        return Path(model.path)
    if model.id is not None and model.weights == "pretrained":
        return None
    return packaged_architecture(str(model.architecture), tiny=model.weights == "tiny")


def packaged_architecture(architecture: str, *, tiny: bool = False) -> Path:
    """The folder of a built-in architecture, or of its tiny configs; UsageError with the known names otherwise."""
    known = _packaged_architectures()
    if architecture not in known:
        whole = architecture.removeprefix(OLD_TINY)
        now = f" It is architecture={whole} with model.weights=tiny now." if whole in known else ""
        raise UsageError(
            f"model.architecture={architecture}: there is no such architecture."
            f"{now or did_you_mean(architecture, known)} `diffopt ls model` lists the models that come with one."
        )
    folder = PACKAGED / architecture
    if tiny and not (folder / TINY).is_dir():
        raise UsageError(
            f"model.weights=tiny: the architecture {architecture} has no tiny configs beside its own; leave "
            "model.weights out, or choose another model of `diffopt ls model`"
        )
    return folder / TINY if tiny else folder


@functools.cache
def _packaged_architectures() -> tuple[str, ...]:
    return tuple(sorted(index.parent.name for index in PACKAGED.glob("*/model_index.json")))


def _check_keys(data: dict[str, Any]) -> None:
    """The keys that are read before the recipe is validated."""
    name = data.get("name")
    for prefix, model, values in (
        ("model", Model, data),
        ("model.limits", Limits, data.get("limits")),
        ("model.parameters", Parameters, data.get("parameters")),
    ):
        required = [key for key, field in model.model_fields.items() if field.is_required()]
        missing = [key for key in required if not isinstance(values, dict) or key not in values]
        if missing:
            keys = ", ".join(f"{prefix}.{key}" for key in missing)
            raise UsageError(f"model={name} lacks {keys}; an option lists it, null where files tell the value")
    for key in TEXTS:
        if not isinstance(data[key], str | None):
            raise UsageError(f"model.{key}={data[key]}: this must be text; quote it, or null")
    for key in ("pipelines", "controlnet", "embeddings", "call"):
        if not isinstance(data.get(key), dict | None):
            raise UsageError(f"model.{key}={data[key]}: this must be a mapping of keys to values, or null")


def _defaults(*, nulls: bool) -> dict[str, Any]:
    """The keys that an option may leave out, as plain data: at null, as files may tell them, or as the schema says."""
    plain: dict[str, Any] = {}
    for key, field in Model.model_fields.items():
        if not field.is_required():
            value = field.get_default(call_default_factory=True)
            plain[key] = None if nulls else value.model_dump(mode="json") if isinstance(value, Frozen) else value
    return plain


def _on_the_hub(data: dict[str, Any]) -> bool:
    return data["id"] is not None and data["weights"] == "pretrained"


def _folder(data: dict[str, Any], base: Path) -> Path | None:
    """The folder whose configs describe the model, or None when only the hub has them."""
    name, path = data["name"], data["path"]
    if data["weights"] == "tiny" and data["architecture"] is None:
        raise UsageError(
            f"model.weights=tiny: model={name} is not one of the built-in families, and only these have tiny configs; "
            "choose one of `diffopt ls model`, or leave model.weights out"
        )
    if path is not None:
        if data["id"] is not None or data["architecture"] is not None:
            raise UsageError(
                f"model.path={path}: model={name} has its files elsewhere; use model=local model.path={path}"
            )
        return _local_folder(path, base)
    if data["architecture"] is not None:
        return packaged_architecture(data["architecture"], tiny=data["weights"] == "tiny")
    if data["id"] is None:
        raise UsageError(
            f"model={name} does not say where the model is: add model.path=DIR, a folder that diffusers' "
            "save_pretrained wrote, or with model=hub model.id=ORG/NAME"
        )
    if data["weights"] == "random":
        raise UsageError(
            f"model.weights=random needs the component configs of {data['id']} on this machine: give a folder with "
            "model=local model.path=DIR, or a built-in architecture with model.architecture=NAME"
        )
    return None


def _local_folder(path: str, base: Path) -> Path:
    folder = user_path(base / user_path(path, "model.path"), "model.path")
    if not folder.exists():
        raise UsageError(f"model.path={path}: there is no folder {folder}")
    folder = folder.resolve()
    if not folder.is_dir():
        raise UsageError(
            f"model.path={path} is a file, and diffopt loads folders in the Hugging Face layout; diffusers converts a "
            "single-file checkpoint: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(DIR)"
        )
    try:
        told = (folder / "model_index.json").is_file()
    except OSError as error:
        raise UsageError(f"model.path={path} cannot be read: {error.strerror}") from error
    if not told:
        raise UsageError(
            f"model.path={path} has no model_index.json, so it is not a pipeline in the Hugging Face layout; give the "
            "whole folder that diffusers' save_pretrained wrote"
        )
    return folder


def _told_by_folder(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    """Facts from the configs in ``folder``, and from its weights where it is these that are loaded."""
    index, local = read_model_index(folder), not _on_the_hub(data)
    if data["embeddings"] is not None:
        index = index.without_text()
    files = find_weights(index, data["variant"]) if local and data["weights"] == "pretrained" else {}
    weights = {name: read_weights(paths) for name, paths in files.items()}
    if local:
        check_model_files(index, data["weights"])
    facts = read_model_facts(index, weights, data)
    return facts | ({"content": _content_of_model(index, files, data)} if local else {})  # last: it reads gigabytes


def _content_of_model(index: ModelIndex, weights: dict[str, tuple[Path, ...]], data: dict[str, Any]) -> str:
    """SHA-256 over names and bytes of the files that make the model: its configs, and the weights that are loaded."""
    paths = [index.folder / "model_index.json"]
    for name in sorted(index.components):
        paths += sorted({*index.config_paths(name), *weights.get(name, ())})
    content = sha256_of_folder(index.folder, paths)
    if data["content"] not in (None, content):
        raise UsageError(
            f"model={data['name']}: the files in {index.folder} are not those that the recipe was made with (their "
            f"SHA-256 begins with {content[:12]}, the recipe's with {data['content'][:12]}); model.content=null takes "
            "them"
        )
    return content


def _fill(data: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """``data`` with its nulls, also nested ones, replaced by the facts of the same name."""
    filled = dict(data)
    for key, fact in facts.items():
        given = data.get(key)
        if isinstance(fact, dict) and isinstance(given, dict | None):
            filled[key] = _fill(given or {}, fact)
        elif given is None:
            filled[key] = fact
    return filled


def _lacking(data: dict[str, Any]) -> list[str]:
    """Keys without which there is no model, and that are null."""
    required = [key for key, field in Model.model_fields.items() if field.is_required() and key not in MAY_BE_NULL]
    lacking = [f"model.{key}" for key in required if data[key] is None]
    if not any((data["pipelines"] or {}).values()):
        lacking.append("model.pipelines.txt2img")
    if data["limits"]["fp16_vae_overflows"] is None:
        lacking.append("model.limits.fp16_vae_overflows")
    if data["task"] in VIDEOS and data["frames"] is None:
        lacking.append("model.frames")
    if data["task"] == "upscale" and data["upscale_factor"] is None:
        lacking.append("model.upscale_factor")
    return lacking


def _check_complete(data: dict[str, Any]) -> None:
    if lacking := _lacking(data):
        raise UsageError(
            f"model={data['name']}: {', '.join(lacking)} cannot be read from the model's files; give the value, such "
            "as model.height=512"
        )
