"""What a model's files say, read when a recipe is composed. Imports no torch and loads no weights.

The ``model`` group's YAML may leave facts at null that the component configs tell better: classes, sizes, what the
weights are stored in. :func:`resolve_model` fills them in and identifies the files by their content.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from diffopt.errors import UsageError
from diffopt.recipe import Limits, Model, Pipelines
from diffopt.weight_files import check_weights, stored

# Pipeline classes that diffopt can call: what they do, and the steps and guidance that diffusers calls them with.
CUSTOMARY: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"task": "txt2img", "steps": 50, "guidance": 7.5},
    "StableDiffusionXLPipeline": {"task": "txt2img", "steps": 50, "guidance": 5.0},
}
PACKAGED = Path(__file__).parent / "models"
DENOISERS = ("unet", "transformer")
LIBRARIES = ("diffusers", "transformers")
LEFT_OUT = frozenset({"safety_checker", "feature_extractor", "image_encoder"})  # optional, and never loaded
WITHOUT_WEIGHTS = re.compile(r"(Tokenizer|TokenizerFast|Scheduler)$")
CONFIG_SUFFIXES = (".json", ".txt", ".model")
SIZE_STEP = 8  # diffusers' Stable Diffusion pipelines refuse other sizes, whatever the VAE's factor


def resolve_model(data: dict[str, Any], base: Path) -> dict[str, Any]:
    """The composed ``model`` group with its nulls filled in from the model's files.

    ``data`` has the keys of :class:`diffopt.recipe.Model`; a relative ``path`` counts from ``base``. The result is
    complete, its ``path`` absolute, and resolving it once more changes nothing. Raises UsageError where keys or files
    are missing, are not safetensors, contain code, or are not the ones whose ``content`` is given.
    """
    _check_keys(data)
    folder = _folder(data, base)
    resolved = dict(data)
    if data["path"] is not None:
        resolved["path"] = str(folder)
    if folder is not None:
        pipeline, components = _read_index(folder)
        if not _on_the_hub(data):
            resolved["content"] = _content(folder, pipeline, components, data)
        resolved = _fill(resolved, _facts(folder, pipeline, components, data))
    _check_complete(resolved)
    return resolved


def model_folder(model: Model) -> Path | None:
    """Where the files of a resolved model lie on this machine; None when they come from the hub."""
    if model.path is not None:
        return Path(model.path)
    if model.id is not None and model.weights == "pretrained":
        return None
    return packaged(str(model.architecture))


def packaged(architecture: str) -> Path:
    """The folder of a built-in architecture; UsageError with the known names otherwise."""
    known = sorted(index.parent.name for index in PACKAGED.glob("*/model_index.json"))
    if architecture not in known:
        raise UsageError(f"model.architecture={architecture}: there is no such architecture; known: {', '.join(known)}")
    return PACKAGED / architecture


def _check_keys(data: dict[str, Any]) -> None:
    """The keys that are read before the recipe is validated."""
    name = data.get("name")
    for prefix, model, values in (
        ("model", Model, data),
        ("model.pipelines", Pipelines, data.get("pipelines")),
        ("model.limits", Limits, data.get("limits")),
    ):
        missing = [key for key in model.model_fields if not isinstance(values, dict) or key not in values]
        if missing:
            keys = ", ".join(f"{prefix}.{key}" for key in missing)
            raise UsageError(f"model={name} lacks {keys}; an option lists every key, null where files tell the value")
    for key in ("id", "revision", "variant", "path", "architecture", "content"):
        if not isinstance(data[key], str | None):
            raise UsageError(f"model.{key}={data[key]}: this must be text; quote it, or null")


def _on_the_hub(data: dict[str, Any]) -> bool:
    return data["id"] is not None and data["weights"] == "pretrained"


def _folder(data: dict[str, Any], base: Path) -> Path | None:
    """The folder whose configs describe the model, or None when only the hub has them."""
    name, path = data["name"], data["path"]
    if path is not None:
        if data["id"] is not None or data["architecture"] is not None:
            raise UsageError(
                f"model.path={path}: model={name} has its files elsewhere; use model=local model.path={path}"
            )
        return _local_folder(path, base)
    if data["architecture"] is not None:
        return packaged(data["architecture"])
    if data["id"] is None:
        raise UsageError(
            f"model={name} does not say where the model is: add model.path=DIR, a folder that diffusers' "
            "save_pretrained wrote"
        )
    if data["weights"] == "random":
        raise UsageError(
            f"model.weights=random needs the component configs of {data['id']} on this machine: give a folder with "
            "model=local model.path=DIR, or a built-in architecture with model.architecture=NAME"
        )
    return None


def _local_folder(path: str, base: Path) -> Path:
    folder = (base / Path(path).expanduser()).resolve()
    if not folder.exists():
        raise UsageError(f"model.path={path}: there is no folder {folder}")
    if not folder.is_dir():
        raise UsageError(
            f"model.path={path} is a file, and diffopt loads folders in the Hugging Face layout; diffusers converts a "
            "single-file checkpoint: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(DIR)"
        )
    if not (folder / "model_index.json").is_file():
        raise UsageError(
            f"model.path={path} has no model_index.json, so it is not a pipeline in the Hugging Face layout; give the "
            "whole folder that diffusers' save_pretrained wrote"
        )
    return folder


def _read_index(folder: Path) -> tuple[str, dict[str, str]]:
    """The pipeline's class and the class of each component that is loaded. Refuses code from the folder."""
    index = _read_json(folder / "model_index.json")
    pipeline = index.get("_class_name")
    if isinstance(pipeline, list) or "custom_pipeline" in index:
        raise UsageError(
            f"{folder}/model_index.json names a custom pipeline, which is code from the folder; diffopt loads only "
            "pipeline classes of diffusers"
        )
    if not isinstance(pipeline, str):
        raise UsageError(f"{folder}/model_index.json does not say the pipeline's class (_class_name)")
    components: dict[str, str] = {}
    for name, entry in index.items():
        if not isinstance(entry, list) or name in LEFT_OUT or entry == [None, None]:
            continue
        library, class_name = entry
        if library not in LIBRARIES:
            raise UsageError(
                f"{folder}/model_index.json: {name} is {library}.{class_name}, which is custom code; diffopt loads "
                f"only components of {' and '.join(LIBRARIES)}"
            )
        components[name] = class_name
    return pipeline, components


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: the model's folder is not complete") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} must hold a JSON object")
    return data


def _with_weights(components: dict[str, str]) -> list[str]:
    return [name for name, class_name in components.items() if not WITHOUT_WEIGHTS.search(class_name)]


def _content(folder: Path, pipeline: str, components: dict[str, str], data: dict[str, Any]) -> str:
    """SHA-256 over names and bytes of the files that make the model: its configs, and its weights unless random."""
    suffixes: tuple[str, ...] = CONFIG_SUFFIXES
    if data["weights"] == "pretrained":
        suffixes += (".safetensors",)
        for name in _with_weights(components):
            check_weights(folder / name, data["variant"], pipeline)
    paths = [folder / "model_index.json"]
    for name in sorted(components):
        paths += sorted(path for path in (folder / name).glob("*") if path.suffix in suffixes)
    content = _sha256(folder, tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths))
    if data["content"] not in (None, content):
        raise UsageError(
            f"model={data['name']}: the files in {folder} are not those that the recipe was made with (their SHA-256 "
            f"begins with {content[:12]}, the recipe's with {data['content'][:12]}); model.content=null takes them"
        )
    return content


@functools.cache
def _sha256(folder: Path, stamped: tuple[tuple[Path, int, int], ...]) -> str:
    """Cached while sizes and times stay the same: a sweep asks for the same gigabytes once per cell."""
    total = hashlib.sha256()
    for path, size, _ in stamped:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()} {size} {digest}\n".encode())
    return total.hexdigest()


def _facts(folder: Path, pipeline: str, components: dict[str, str], data: dict[str, Any]) -> dict[str, Any]:
    """What the files say, with the keys of the ``model`` group; the comments in local.yaml say from where."""
    customary = _customary(folder, pipeline, data)
    denoiser = next((name for name in DENOISERS if name in components), None)
    if denoiser is None:
        raise UsageError(f"{folder}/model_index.json has no {' or '.join(DENOISERS)}")
    vae = _read_json(folder / "vae" / "config.json") if "vae" in components else {}
    factor = 2 ** (len(vae["block_out_channels"]) - 1) if vae else 1
    height, width = _sample_size(folder / denoiser / "config.json", factor)
    from_files = data["weights"] == "pretrained" and not _on_the_hub(data)
    weights = {name: stored(folder / name, data["variant"]) for name in _with_weights(components) if from_files}
    return {
        "pipelines": {customary["task"]: pipeline} if customary else {},
        "denoiser": denoiser,
        "denoiser_class": components[denoiser],
        "vae": "vae" if vae else None,
        "text_encoders": sorted(name for name in components if name.startswith("text_encoder")),
        "size_multiple": max(factor, SIZE_STEP),
        "height": height,
        "width": width,
        "steps": customary.get("steps"),
        "guidance": customary.get("guidance"),
        "dtype": weights[denoiser][1] if from_files else "float32",
        "parameters": sum(count for count, _ in weights.values()) or None,
        # SDXL's pipeline looks at this key of the VAE and decodes in float32; diffusers' default is true.
        "limits": {"fp16_vae_overflows": "XL" in pipeline and bool(vae.get("force_upcast", True))},
    }


def _customary(folder: Path, pipeline: str, data: dict[str, Any]) -> dict[str, Any]:
    """The entry of CUSTOMARY; empty when it is unknown, but the option itself says the class for its task."""
    if pipeline not in CUSTOMARY and not any(data["pipelines"].values()):
        raise UsageError(
            f"{folder}/model_index.json: diffopt does not know what the pipeline class {pipeline} is for; known: "
            f"{', '.join(CUSTOMARY)}"
        )
    return CUSTOMARY.get(pipeline, {})


def _sample_size(config: Path, factor: int) -> tuple[int | None, int | None]:
    """Customary height and width in pixels: the denoiser's latent size times the VAE's factor."""
    size = _read_json(config).get("sample_size")
    height, width = size if isinstance(size, list) else (size, size)
    return height and height * factor, width and width * factor


def _fill(data: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """``data`` with its nulls, also nested ones, replaced by the facts of the same name."""
    filled = dict(data)
    for key, fact in facts.items():
        if isinstance(fact, dict):
            filled[key] = _fill(data[key], fact)
        elif data[key] is None:
            filled[key] = fact
    return filled


def _check_complete(data: dict[str, Any]) -> None:
    may_be_null = {"id", "revision", "variant", "path", "architecture", "content", "vae", "parameters"}
    missing = [f"model.{key}" for key in Model.model_fields if data[key] is None and key not in may_be_null]
    missing += [f"model.limits.{key}" for key, value in data["limits"].items() if value is None]
    if missing:
        raise UsageError(
            f"model={data['name']}: {', '.join(missing)} cannot be read from files here; give the value, such as "
            "model.height=512"
        )
