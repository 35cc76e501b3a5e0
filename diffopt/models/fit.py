"""Whether a pipeline's parts fit together, and what is asked for: what would else be an error of a library.

Imports no torch. The only exception is UsageError.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffopt.errors import UsageError
from diffopt.models.classes import Family
from diffopt.models.index import ModelIndex, read_model_json
from diffopt.schema.model import Task

TIMES, TIMES_WITH_SCORE = 6, 5  # numbers that SDXL's UNet is told beside the text: sizes and crop, or crop and a score


def check_named_parts(index: ModelIndex, data: Mapping[str, Any]) -> None:
    """UsageError where a key names a part that the pipeline has not, such as a VAE of another repository."""
    encoders = data["text_encoders"] if data["embeddings"] is None else []
    for key, names in (("vae", [data["vae"]]), ("text_encoders", encoders)):
        for name in names if isinstance(names, list) else []:
            if isinstance(name, str) and name not in index.modules:  # what is no text the model refuses
                raise UsageError(
                    f"model.{key}={name}: {index.folder}/model_index.json has no such part; its parts with weights are "
                    f"{', '.join(sorted(index.modules))}. The key names one of them. To use another model's part, put "
                    "it in with plain diffusers, such as pipe.register_modules(vae=…), save the pipeline with "
                    "pipe.save_pretrained(DIR), and take model=local model.path=DIR"
                )
    for key, name in (("denoiser_class", data["denoiser"]), ("controlnet.class_name", "controlnet")):
        _check_class(index, key, name, data)


def _check_class(index: ModelIndex, key: str, name: str | None, data: Mapping[str, Any]) -> None:
    outer, _, inner = key.partition(".")
    group = data[outer] if isinstance(data[outer], dict) else {}
    given = group.get(inner) if inner else data[outer]
    if not isinstance(name, str) or name not in index.components or given is None:
        return
    if given != index.components[name].class_name:
        raise UsageError(
            f"model.{key}={given}: {index.folder}/model_index.json says that {name} is a "
            f"{index.components[name].class_name}; leave the key out"
        )


def check_stored_weights(index: ModelIndex) -> None:
    """UsageError where weights were saved quantized by a library that diffopt does not read them with."""
    for name in sorted(index.modules):
        path = index.folder / name / "config.json"
        stored = read_model_json(path).get("quantization_config") if path.is_file() else None
        if stored is None:
            continue
        method = stored.get("quant_method") if isinstance(stored, dict) else None
        if method != "torchao":
            raise UsageError(
                f"{path}: its weights were quantized by {method or 'what it does not name'} before they were saved, "
                "and diffopt reads plain ones, or those that torchao quantized. Take the model from before it was "
                "quantized, and choose quant=int8_weight or quant=int4_weight"
            )


def classes_that_tell_what_the_unet_takes(
    index: ModelIndex, config: Mapping[str, Any], family: Family
) -> dict[Task, str]:
    """Of a family's classes those that tell the UNet as many numbers as it takes: SDXL's refiner takes a score.

    Raises UsageError where the index says otherwise than the UNet's config.
    """
    taken = _numbers_taken(index, config)
    if not family.scores or taken not in (TIMES, TIMES_WITH_SCORE):
        return family.classes
    scored = taken == TIMES_WITH_SCORE
    path = index.folder / "model_index.json"
    if (said := bool(read_model_json(path).get("requires_aesthetics_score"))) != scored and (
        scored or index.pipeline in [family.classes[task] for task in family.scores]
    ):
        raise UsageError(
            f"{path} says requires_aesthetics_score={str(said).lower()}, but its UNet was trained "
            f"{'with' if scored else 'without'} a score; save the pipeline after "
            f"pipe.register_to_config(requires_aesthetics_score={scored})"
        )
    return {task: name for task, name in family.classes.items() if not scored or task in family.scores}


def _numbers_taken(index: ModelIndex, config: Mapping[str, Any]) -> int | None:
    """How many numbers the UNet is told beside the text's; None where its config and the text encoder's do not say."""
    path = index.folder / "text_encoder_2" / "config.json"
    width, total = config.get("addition_time_embed_dim"), config.get("projection_class_embeddings_input_dim")
    text = read_model_json(path).get("projection_dim") if path.is_file() else None
    if not all(isinstance(number, int) and number > 0 for number in (width, total, text)):
        return None
    numbers, rest = divmod(total - text, width)  # type: ignore[operator]
    return None if rest else int(numbers)
