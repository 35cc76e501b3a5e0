"""What a model's files say, read when a recipe is composed. Imports no torch and loads no weights.

The ``model`` group's YAML may leave facts at null that the component configs tell better: classes, sizes, what the
weights are stored in. :func:`resolve_model` fills them in and identifies the files by their content.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffopt.content import content_of
from diffopt.errors import UsageError
from diffopt.head_sizes import of_denoiser, of_vae
from diffopt.model_index import ModelIndex, check_configs, is_count, read_index, read_json
from diffopt.paths import user_path
from diffopt.recipe import Limits, Model, Pipelines
from diffopt.weight_files import Weights, read_weights

# Pipeline classes that diffopt can call: what they do, the steps and guidance that diffusers calls them with, and the
# components without which they cannot draw a picture.
CUSTOMARY: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {
        "task": "txt2img",
        "steps": 50,
        "guidance": 7.5,
        "needs": ("vae", "text_encoder", "tokenizer", "unet", "scheduler"),
    },
    "StableDiffusionXLPipeline": {
        "task": "txt2img",
        "steps": 50,
        "guidance": 5.0,
        "needs": ("vae", "text_encoder_2", "tokenizer_2", "unet", "scheduler"),
    },
}
PACKAGED = Path(__file__).parent / "models"
DENOISERS = ("unet", "transformer")
CONFIG_SUFFIXES = (".json", ".txt", ".model")
MOST_LEVELS = 8  # of a VAE; the deepest in use have 6
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
        index = read_index(folder)
        local = not _on_the_hub(data)
        weights = read_weights(index, data["variant"]) if local and data["weights"] == "pretrained" else {}
        if local:
            check_configs(index, data["weights"])
        resolved = _fill(resolved, _facts(index, weights, data))
        if local:  # last, because it reads gigabytes
            resolved["content"] = _content(index, weights, data)
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
    folder = user_path(base / user_path(path, "model.path"), "model.path")
    if not folder.exists():
        raise UsageError(f"model.path={path}: there is no folder {folder}")
    folder = folder.resolve()
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


def _content(index: ModelIndex, weights: dict[str, Weights], data: dict[str, Any]) -> str:
    """SHA-256 over names and bytes of the files that make the model: its configs, and the weights that are loaded."""
    paths = [index.folder / "model_index.json"]
    for name in sorted(index.components):
        configs = [path for path in (index.folder / name).glob("*") if path.suffix in CONFIG_SUFFIXES]
        paths += sorted({*configs, *(weights[name].files if name in weights else ())})
    content = content_of(index.folder, paths)
    if data["content"] not in (None, content):
        raise UsageError(
            f"model={data['name']}: the files in {index.folder} are not those that the recipe was made with (their "
            f"SHA-256 begins with {content[:12]}, the recipe's with {data['content'][:12]}); model.content=null takes "
            "them"
        )
    return content


def _facts(index: ModelIndex, weights: dict[str, Weights], data: dict[str, Any]) -> dict[str, Any]:
    """What the files say, with the keys of the ``model`` group; the comments in local.yaml say from where."""
    customary = _customary(index, data)
    _check_parts(index, customary)
    denoiser = next((name for name in DENOISERS if name in index.components), None)
    if denoiser is None:
        raise UsageError(f"{index.folder}/model_index.json has no {' or '.join(DENOISERS)}")
    config = read_json(index.folder / denoiser / "config.json")
    vae = read_json(index.folder / "vae" / "config.json") if "vae" in index.components else {}
    factor = _vae_factor(index.folder / "vae" / "config.json", vae) if vae else 1
    height, width = _sample_size(index.folder / denoiser / "config.json", config, factor)
    head_sizes, vae_head_size = _head_sizes(index, denoiser, config, vae)
    return {
        "pipelines": {customary["task"]: index.pipeline} if customary else {},
        "denoiser": denoiser,
        "denoiser_class": index.components[denoiser].class_name,
        "vae": "vae" if vae else None,
        "text_encoders": sorted(name for name in index.components if name.startswith("text_encoder")),
        "head_sizes": head_sizes,
        "vae_head_size": vae_head_size,
        "size_multiple": max(factor, SIZE_STEP),
        "height": height,
        "width": width,
        "steps": customary.get("steps"),
        "guidance": customary.get("guidance"),
        "dtype": weights[denoiser].dtype if weights else "float32",
        "parameters": sum(part.parameters for part in weights.values()) or None,
        # SDXL's pipeline looks at this key of the VAE and decodes in float32; diffusers' default is true.
        "limits": {"fp16_vae_overflows": "XL" in index.pipeline and bool(vae.get("force_upcast", True))},
    }


def _customary(index: ModelIndex, data: dict[str, Any]) -> dict[str, Any]:
    """The entry of CUSTOMARY; empty when it is unknown, but the option itself says the class for its task."""
    if index.pipeline not in CUSTOMARY and not any(data["pipelines"].values()):
        raise UsageError(
            f"{index.folder}/model_index.json: diffopt does not know what the pipeline class {index.pipeline} is for; "
            f"known: {', '.join(CUSTOMARY)}"
        )
    return CUSTOMARY.get(index.pipeline, {})


def _check_parts(index: ModelIndex, customary: dict[str, Any]) -> None:
    """UsageError where the index lacks a part; text encoders and tokenizers come in pairs."""
    pairs = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    pairs |= {tokenizer: encoder for encoder, tokenizer in pairs.items()}
    needs = [*customary.get("needs", ()), *(pairs[name] for name in index.components if name in pairs)]
    lacking = [name for name in dict.fromkeys(needs) if name not in index.components]
    if lacking:
        raise UsageError(
            f"{index.folder}/model_index.json lacks {', '.join(lacking)}, without which {index.pipeline} cannot draw; "
            "give the whole folder that diffusers' save_pretrained wrote"
        )


def _vae_factor(path: Path, config: dict[str, Any]) -> int:
    """Pixels per latent pixel: each level of the VAE but the last halves the picture."""
    channels = config.get("block_out_channels")
    if not isinstance(channels, list) or not 1 <= len(channels) <= MOST_LEVELS or not all(map(is_count, channels)):
        raise UsageError(f"{path}: block_out_channels must be a list of channels, one number for each level of the VAE")
    return int(2 ** (len(channels) - 1))


def _sample_size(path: Path, config: dict[str, Any], factor: int) -> tuple[int | None, int | None]:
    """Customary height and width in pixels: the denoiser's latent size times the VAE's factor."""
    size = config.get("sample_size")
    if size is None:
        return None, None
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(map(is_count, sides)):
        raise UsageError(f"{path}: sample_size must be one number, or [height, width], in latent pixels")
    height, width = sides
    return height * factor, width * factor


def _head_sizes(
    index: ModelIndex, denoiser: str, config: dict[str, Any], vae: dict[str, Any]
) -> tuple[list[int] | None, int | None]:
    """Channels per attention head of the denoiser and of the VAE."""
    try:
        return of_denoiser(index.components[denoiser].class_name, config), of_vae(vae) if vae else None
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:  # whatever wrong types and lengths lead to
        raise UsageError(
            f"{index.folder / denoiser}/config.json: its blocks, channels and attention heads do not fit together "
            f"({type(error).__name__}: {error})"
        ) from None


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
    may_be_null = {"id", "revision", "variant", "path", "architecture", "content", "vae", "vae_head_size", "parameters"}
    missing = [f"model.{key}" for key in Model.model_fields if data[key] is None and key not in may_be_null]
    missing += [f"model.limits.{key}" for key, value in data["limits"].items() if value is None]
    if missing:
        raise UsageError(
            f"model={data['name']}: {', '.join(missing)} cannot be read from files here; give the value, such as "
            "model.height=512"
        )
