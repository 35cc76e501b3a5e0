"""The layers of a LoRA in a pipeline: loaded, and counted against the file.

Torch, transformers and peft are imported by the functions that need them, so that a plan needs none of them.

diffusers loads what matches and says nothing of the rest: a file whose names fit no part leaves a pipeline as it was.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffopt.errors import Refusal
from diffopt.models.lora import lora_file_at_hand
from diffopt.schema.words import one_line
from diffopt.steps.components import parts

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn

Layers = dict[str, dict[str, Any]]  # component: path of the layer: the layer

_LAYER = re.compile(r"(\.lora_[AB]|\.lora\.(down|up)|_lora\.(down|up)|\.lora_(down|up)|\.lokr_).*$")
_COUNTS = "_diffopt_lora_layers"  # attribute of the pipeline


def load_lora_layers(pipe: Any, path: str | None, content: str | None, *, kind: str, adapter: str) -> None:
    """Put the layers of a file into the pipeline, active, and remember how many there are.

    Raises Refusal where the file is none of that ``content``, the pipeline takes none, or a layer fits none of its
    modules.
    """
    said = f"lora={kind}"
    if path is None:
        raise Refusal(f"{said}: name the LoRA's file with lora.path=FILE.safetensors")
    if not hasattr(pipe, "load_lora_weights"):
        raise Refusal(f"{said}: {type(pipe).__name__} has no load_lora_weights")
    if any(lora_adapted_layers(part) for part in parts(pipe).values()):
        raise Refusal(f"{said}: the pipeline has LoRA layers already; unload_lora_weights() takes them out")
    file = lora_file_at_hand(path, content)
    wanted = modules_changed_by_lora(pipe, file, said)
    with without_lora_warnings():
        try:
            pipe.load_lora_weights(str(file), adapter_name=adapter, use_safetensors=True, local_files_only=True)
        except (ValueError, RuntimeError, LookupError, TypeError) as error:
            first = min(min(paths) for paths in wanted.values())
            reason = f"nothing is called {first}" if "not found in the base model" in str(error) else _brief(error)
            raise Refusal(f"{said}: {file.name} does not fit this {type(pipe).__name__}: {reason}") from error
    found = lora_layers(pipe, adapter)
    for component, paths in wanted.items():
        if len(found.get(component, {})) < len(paths):
            lacking = sorted(paths - found.get(component, {}).keys())
            raise Refusal(
                f"{said}: {len(found.get(component, {}))} of the {len(paths)} layers in {file.name} fit {component} "
                f"({type(getattr(pipe, component)).__name__}), {lacking[0]} does not"
            )
    for layer in (layer for one in found.values() for layer in one.values()):
        layer.requires_grad_(False)
    setattr(pipe, _COUNTS, {component: len(found[component]) for component in wanted})


def modules_changed_by_lora(pipe: Any, file: Path, said: str) -> dict[str, set[str]]:
    """The modules that a file changes, by component, in diffusers' names; other tools' formats are converted."""
    with without_lora_warnings():
        try:
            state = pipe.lora_state_dict(str(file), use_safetensors=True, local_files_only=True)
        except (ValueError, RuntimeError, LookupError, TypeError) as error:
            raise Refusal(
                f"{said}: {file.name} is in no format that {type(pipe).__name__} knows: {_brief(error)}"
            ) from error
    found: dict[str, set[str]] = {}
    for name in state[0] if isinstance(state, tuple) else state:
        component, _, rest = name.partition(".")
        if _LAYER.search(rest):
            found.setdefault(component, set()).add(_LAYER.sub("", rest))
    loadable = [name for name in pipe._lora_loadable_modules if getattr(pipe, name, None) is not None]
    if not found or (unknown := sorted(found.keys() - set(loadable))):
        told = f"its names begin with {', '.join(unknown)}" if found else "no tensor is named as LoRA's are"
        raise Refusal(
            f"{said}: {file.name} does not fit {type(pipe).__name__}, which takes {', '.join(loadable)}: {told}"
        )
    return found


def lora_layers(pipe: DiffusionPipeline, adapter: str) -> Layers:
    """The layers of an adapter, by component and path; components without any are left out."""
    found = {
        name: {path: layer for path, layer in lora_adapted_layers(part) if _has(layer, adapter)}
        for name, part in parts(pipe).items()
    }
    return {name: one for name, one in found.items() if one}


def lora_layer_counts(pipe: DiffusionPipeline) -> Mapping[str, int]:
    """How many layers the file has for each component; empty where :func:`load_lora_layers` was not called."""
    found: Mapping[str, int] = vars(pipe).get(_COUNTS, {})
    return found


def lora_adapted_layers(part: nn.Module) -> list[tuple[str, Any]]:
    """Path and layer of every adapter's layers in a component."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(path, layer) for path, layer in part.named_modules() if isinstance(layer, BaseTunerLayer)]


def _has(layer: Any, adapter: str) -> bool:
    return any(adapter in getattr(layer, name, {}) for name in layer.adapter_layer_names)


def _brief(error: Exception) -> str:
    """The beginning of what a library says of a file; it goes on for each of its tensors."""
    said = one_line(error)
    return said if len(said) <= 300 else f"{said[:297]}..."


@contextmanager
def without_lora_warnings() -> Iterator[None]:
    """Without a warning for each part that a file does not change, and without bars; what it misses is counted here."""
    from transformers.utils import logging as of_transformers

    loggers = {logger: logger.level for logger in map(logging.getLogger, ("diffusers.loaders", "diffusers.utils"))}
    bars = of_transformers.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    if bars:
        of_transformers.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
        if bars:
            of_transformers.enable_progress_bar()
