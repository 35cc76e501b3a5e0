"""What a pipeline's configs tell about it, with the keys of the ``model`` group. Imports no torch.

Whatever the configs hold, the only exception is UsageError; what they do not tell is ``None``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from diffopt.errors import UsageError
from diffopt.models import classes, sizes
from diffopt.models.classes import Family
from diffopt.models.families import family_of_pipeline, task_told_by_class_name
from diffopt.models.fit import check_named_parts, check_stored_weights, classes_that_tell_what_the_unet_takes
from diffopt.models.index import TEXT_ENCODER, ModelIndex, is_size_in_model_config, read_model_json
from diffopt.models.sampling import TRAIN_TIMESTEPS, sampler_needs_of_model
from diffopt.models.sizes import NUMBER, head_size_of_vae, head_sizes_of_denoiser
from diffopt.models.weights import Weights
from diffopt.schema.model import TASKS, Task

DENOISER_NAMES = ("unet", "transformer")
SIZE_STEP = 8  # pixels; most of diffusers' pipelines refuse other sizes, whatever the VAE's factor
XL_SCALING = 0.13025  # scaling_factor of SDXL's VAE, which overflows in float16 and which other families took over
INPAINTED = 4  # channels of UNets that diffusers' inpainting classes take, beside those with 9 that are made for it
VIDEOS = ("txt2video", "img2video")
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """What facts are read from."""

    index: ModelIndex
    family: Family | None
    data: Mapping[str, Any]  # of the option: what it says itself is not read
    denoiser: str
    config: Mapping[str, Any]  # of the denoiser
    vae: Mapping[str, Any]  # config; empty where there is none

    @property
    def factors(self) -> tuple[int | None, int | None]:
        """Pixels per latent pixel and frames per latent frame; None: not told."""
        if self.index.vae is None:
            return 1, None
        return self.read(self.index.vae, lambda: sizes.latent_factors_of_vae(self.vae))

    def read(self, component: str, work: Callable[[], T]) -> T:
        """``work``, with whatever wrong types and lengths lead to as one paragraph about ``component``."""
        path = self.index.folder / component / "config.json"
        try:
            return work()
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise UsageError(f"{path}: its values do not fit together ({type(error).__name__}: {error})") from None


def read_model_facts(
    index: ModelIndex, weights: Mapping[str, Weights] | None, data: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``index`` and ``weights`` tell; the comments in conf/model/local.yaml say from where.

    ``weights`` are empty where random ones are drawn, and None where they are not at hand. Raises UsageError where the
    index lacks a part, and where a config is malformed.
    """
    _check_parts(index, data)
    name = _denoiser(index, data)
    check_named_parts(index, data)
    if data["weights"] == "pretrained":
        check_stored_weights(index)
    config = read_model_json(index.folder / name / "config.json")
    vae = read_model_json(index.folder / index.vae / "config.json") if index.vae is not None else {}
    given = [name for name in (data["pipelines"] or {}).values() if name]
    known = index.family or next((found for found in map(family_of_pipeline, given) if found is not None), None)
    source = Source(index, known, data, name, config, vae)
    uses = _uses(source)
    return {**uses, **_sizes(source, uses), **_structure(source), **_numbers(source, weights)}


def _check_parts(index: ModelIndex, data: Mapping[str, Any]) -> None:
    """UsageError where the index lacks a part without which its class cannot draw."""
    needed = index.family.parts if index.family is not None else ()
    if data["embeddings"] is not None:
        needed = tuple(name for name in needed if not TEXT_ENCODER.search(name) and "tokenizer" not in name)
    lacking = [name for name in needed if name not in index.components]
    if "controlnet" in lacking and data["controlnet"] is not None:
        lacking.remove("controlnet")  # it has a repository of its own
    if lacking:
        raise UsageError(
            f"{index.folder}/model_index.json lacks {', '.join(lacking)}, without which {index.pipeline} cannot draw; "
            "give the whole folder that diffusers' save_pretrained wrote"
        )


def _denoiser(index: ModelIndex, data: Mapping[str, Any]) -> str:
    name = data["denoiser"] or next((name for name in DENOISER_NAMES if name in index.modules), None)
    if name not in index.modules:
        wanted = name or " or ".join(DENOISER_NAMES)
        raise UsageError(
            f"{index.folder}/model_index.json has no {wanted}; say which of its parts runs in every step with "
            f"model.denoiser=NAME: {', '.join(sorted(index.modules)) or 'it has none with weights'}"
        )
    return str(name)


def _uses(source: Source) -> dict[str, Any]:
    """What the pipeline is for, and how its classes are called."""
    index, known = source.index, source.family
    tasks = {task: name for task, name in (source.data["pipelines"] or {}).items() if name} or _tasks(source)
    own = [task for task, name in tasks.items() if name == index.pipeline]
    return {
        "pipelines": tasks,
        "task": next(iter(own or tasks)),
        "guidance_argument": known.scale if known is not None else "guidance_scale",
        "embedded_guidance": known is not None and known.embeds,
        "call": dict(known.call) if known is not None else {},
        "upscale_factor": _upscale_factor(source) if "upscale" in tasks else None,
    }


def _upscale_factor(source: Source) -> int | None:
    factor, by_vae = classes.pipeline_class_record(source.index.pipeline).upscales, source.factors[0]
    return by_vae if factor is None else factor


def _tasks(source: Source) -> dict[Task, str]:
    """Class by task, for the class that the index names and those that draw with the same components."""
    pipeline, known = source.index.pipeline, source.family
    if known is None:
        task = task_told_by_class_name(pipeline)
        if task is None:
            raise UsageError(
                f"{source.index.folder}/model_index.json: diffopt does not know what the pipeline class {pipeline} is "
                f"for; say it with model.pipelines.txt2img={pipeline}, or another task: {', '.join(TASKS[1:])}"
            )
        return {task: pipeline}
    classes_of_tasks = classes_that_tell_what_the_unet_takes(source.index, source.config, known)
    channels, latent = source.config.get("in_channels"), source.vae.get("latent_channels")
    if source.denoiser == "unet" and latent is not None and channels != latent:
        # the UNet also reads a mask, a picture or a depth map, which no other class of the family gives it
        return {task: name for task, name in classes_of_tasks.items() if name == pipeline}
    if latent is not None and source.denoiser == "unet" and channels != INPAINTED:
        return {task: name for task, name in classes_of_tasks.items() if task != "inpaint"}
    return classes_of_tasks


def _structure(source: Source) -> dict[str, Any]:
    """The parts by name and class, and what kernels and compilers ask of them."""
    index, denoiser = source.index, source.denoiser
    class_name, controlnet = index.components[denoiser].class_name, index.components.get("controlnet")
    vae_class = index.components[index.vae].class_name if index.vae is not None else ""
    return {
        "denoiser": denoiser,
        "denoiser_class": class_name,
        "vae": index.vae,
        "text_encoders": list(index.text_encoders),
        "controlnet": {"class_name": controlnet.class_name, "id": None, "revision": None, "variant": None}
        if controlnet is not None
        else None,
        "repeated_blocks": source.read(denoiser, lambda: _repeated_blocks(class_name, source.config)),
        "head_sizes": source.read(denoiser, lambda: head_sizes_of_denoiser(class_name, dict(source.config))) or [],
        "vae_head_size": source.read(str(index.vae), lambda: head_size_of_vae(vae_class, dict(source.vae))),
        **_sampling(index),
    }


def _sampling(index: ModelIndex) -> dict[str, Any]:
    """What the config of the scheduler says to every sampler; nulls where there is no such config."""
    path = index.folder / "scheduler" / "scheduler_config.json"
    config = read_model_json(path) if path.is_file() else None
    trained = None if config is None else config.get("num_train_timesteps")
    return {
        "sampler_needs": None if config is None else [*sampler_needs_of_model(config)],
        "train_timesteps": trained if is_size_in_model_config(trained) and trained != TRAIN_TIMESTEPS else None,
    }


def _repeated_blocks(class_name: str, config: Mapping[str, Any]) -> list[str] | None:
    """Where diffusers' class declares nothing, or a block that this UNet does not have; None: as the class says."""
    known = classes.denoiser_class_record(class_name)
    if known.heads == "by_block":
        blocks = {*config["down_block_types"], *config["up_block_types"], config.get("mid_block_type", "")}
        return None if blocks & NUMBER else []
    return None if known.repeated_blocks is None else [*known.repeated_blocks]


def _sizes(source: Source, uses: Mapping[str, Any]) -> dict[str, Any]:
    """Pixels and frames."""
    known, (spatial, temporal) = source.family, source.factors
    height, width = _customary_size(source, spatial)
    frames = known.frames if known is not None else None
    is_video = bool(set(VIDEOS) & uses["pipelines"].keys())
    whole = temporal is not None and (frames is None or (frames - 1) % temporal == 0)
    multiple = None
    if spatial is not None:
        packed = spatial * source.read(source.denoiser, lambda: sizes.patch_size_of_denoiser(source.config, source.vae))
        scaled = spatial * (uses["upscale_factor"] or 1)
        multiple = math.lcm(packed, scaled, known.multiple if known is not None else SIZE_STEP)
    return {
        "size_multiple": multiple,
        "height": height,
        "width": width,
        "frames": frames,
        "frame_step": temporal if is_video and whole else None,
        "vae_factor": spatial if source.index.vae is not None else None,
        "size_limit": _size_limit(source, spatial),
        "fps": known.fps if known is not None else None,
    }


def _size_limit(source: Source, factor: int | None) -> dict[str, Any] | None:
    """In pixels, of the denoiser and the ControlNet beside it, whichever is less."""
    found = []
    for name in (source.denoiser, "controlnet"):
        if factor is None or name not in source.index.modules:
            continue
        config = source.config if name == source.denoiser else _config(source.index, name)
        limit = source.read(name, partial(_latent_limit, source, name, config))
        if limit is not None:
            found.append({**limit, "height": limit["height"] * factor, "width": limit["width"] * factor})
    if not found:
        return None
    return {**found[0], **{side: min(limit[side] for limit in found) for side in ("height", "width")}}


def _latent_limit(source: Source, name: str, config: Mapping[str, Any]) -> dict[str, Any] | None:
    patch = sizes.patch_size_of_denoiser(config, source.vae)
    return sizes.largest_size_of_model_class(source.index.components[name].class_name, config, patch)


def _config(index: ModelIndex, name: str) -> dict[str, Any]:
    path = index.folder / name / "config.json"
    return read_model_json(path) if path.is_file() else {}


def _customary_size(source: Source, factor: int | None) -> tuple[int | None, int | None]:
    """Height and width in pixels: the class's own, or the denoiser's latent size times the VAE's factor."""
    known = source.family
    if known is not None and known.size is not None:
        return known.size
    size = source.read(source.denoiser, lambda: sizes.model_sample_size(source.config))
    if size is None and known is not None and known.latent is not None:
        size = known.latent, known.latent
    return (None, None) if size is None or factor is None else (size[0] * factor, size[1] * factor)


def _numbers(source: Source, weights: Mapping[str, Weights] | None) -> dict[str, Any]:
    """Customary settings, and what the weights are."""
    index, known = source.index, source.family
    dtype = "float32" if weights is not None else None
    vae_class = index.components[index.vae].class_name if index.vae is not None else None
    upcasts = (known is not None and known.upcasts) or source.vae.get("scaling_factor") == XL_SCALING
    return {
        "steps": known.steps if known is not None else None,
        "guidance": known.guidance if known is not None else None,
        "dtype": weights[source.denoiser].dtype if weights else dtype,
        "parameters": _parameter_counts(index, weights or {}),
        "limits": {
            "fp16_vae_overflows": upcasts and bool(source.vae.get("force_upcast", True)),
            "vae_float32": classes.vae_class_record(vae_class).float32,
        },
    }


def _parameter_counts(index: ModelIndex, weights: Mapping[str, Weights]) -> dict[str, int | None]:
    """Number of parameters by part; what is neither a text encoder nor the VAE counts as the denoiser's."""
    if not weights:
        return {"denoiser": None, "text_encoders": None, "vae": None}
    counts: dict[str, int | None] = {"denoiser": 0, "text_encoders": 0, "vae": 0}
    for name, part in weights.items():
        word = "vae" if name == index.vae else "text_encoders" if name in index.text_encoders else "denoiser"
        counts[word] = (counts[word] or 0) + part.parameters
    return counts
