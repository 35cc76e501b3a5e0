"""A pipeline's folder in the Hugging Face layout: its parts, and the small files that each of them needs.

Nothing in a folder is trusted: whatever its files hold, the only exception is UsageError.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diffopt.errors import UsageError

LIBRARIES = ("diffusers", "transformers")
LEFT_OUT = frozenset({"safety_checker", "feature_extractor", "image_encoder"})  # optional, and never loaded
NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)  # of folders and attributes: stays inside of the model's folder


class Component(NamedTuple):
    """One part of a pipeline, as model_index.json names it."""

    library: str
    class_name: str

    @property
    def kind(self) -> str:
        """``tokenizer``, ``scheduler``, or ``module``: a part with weights."""
        if self.class_name.endswith(("Tokenizer", "TokenizerFast")):
            return "tokenizer"
        return "scheduler" if self.class_name.endswith("Scheduler") else "module"


@dataclass(frozen=True)
class ModelIndex:
    """What model_index.json says: the pipeline's class, and each part that is loaded, by its name."""

    folder: Path
    pipeline: str
    components: dict[str, Component]

    @property
    def modules(self) -> dict[str, Component]:
        """The parts with weights."""
        return {name: part for name, part in self.components.items() if part.kind == "module"}


def read_index(folder: Path) -> ModelIndex:
    """The model_index.json of ``folder``. Raises UsageError where it is malformed or names code of the folder."""
    path = folder / "model_index.json"
    index = read_json(path)
    pipeline = index.get("_class_name")
    if isinstance(pipeline, list) or "custom_pipeline" in index:
        raise UsageError(
            f"{path} names a custom pipeline, which is code from the folder; diffopt loads only pipeline classes of "
            "diffusers"
        )
    if not _is_name(pipeline):
        raise UsageError(f"{path} does not say the pipeline's class (_class_name)")
    components: dict[str, Component] = {}
    for name, entry in index.items():
        if name not in LEFT_OUT and not isinstance(entry, list):
            continue  # a setting of the pipeline, such as requires_safety_checker
        part = _component(path, name, entry)
        if part is not None and name not in LEFT_OUT:
            components[name] = part
    return ModelIndex(folder, str(pipeline), components)


def _component(path: Path, name: str, entry: Any) -> Component | None:
    """One entry of the index; None for ``[null, null]``, a part that the pipeline does without."""
    if entry == [None, None]:
        return None
    if not _is_name(name):
        raise UsageError(f"{path}: {name!r} cannot be the name of a component; letters, digits and '_' can")
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(item, str) for item in entry):
        raise UsageError(f"{path}: {name} must be [library, class], both text, or [null, null]")
    library, class_name = entry
    if name not in LEFT_OUT and (library not in LIBRARIES or not _is_name(class_name)):
        raise UsageError(
            f"{path}: {name} is {_shown(library)}.{_shown(class_name)}, which is custom code; diffopt loads only "
            f"components of {' and '.join(LIBRARIES)}"
        )
    return Component(library, class_name)


def check_configs(index: ModelIndex, weights: str) -> None:
    """UsageError unless each part has the small files that it is loaded from; ``weights`` as in the model's option."""
    for name, part in index.components.items():
        folder = index.folder / name
        match part.kind:
            case "module":
                read_json(folder / "config.json")
            case "scheduler":
                read_json(folder / "scheduler_config.json")
            case _:
                _check_tokenizer(folder, part.class_name, weights)


def _check_tokenizer(folder: Path, class_name: str, weights: str) -> None:
    """Other tokenizers than CLIP's name their files in their own ways; those are left to transformers."""
    files = ("tokenizer_config.json", "tokenizer.json", "vocab.json")
    present = {name: read_json(folder / name) for name in files if (folder / name).exists()}
    if not class_name.startswith("CLIPTokenizer"):
        return
    if (folder / "merges.txt").is_file():
        present["merges.txt"] = {}
    if "tokenizer.json" in present or {"vocab.json", "merges.txt"} <= present.keys():
        return
    if weights == "random" and "vocab.json" not in present:
        _check_made_tokenizer(folder, present.get("tokenizer_config.json", {}))
        return
    raise UsageError(
        f"{folder} has no tokenizer: a {class_name} needs tokenizer.json, or vocab.json and merges.txt; copy them from "
        "the model that this one was made from"
    )


def _check_made_tokenizer(folder: Path, config: dict[str, Any]) -> None:
    """With random weights a missing tokenizer is made to fit the text encoder; these are the facts it is made from."""
    encoder = folder.parent / folder.name.replace("tokenizer", "text_encoder") / "config.json"
    if not isinstance(config.get("pad_token"), str):
        raise UsageError(f"{folder}/tokenizer_config.json must say pad_token, as text")
    for path, values, key in (
        (folder / "tokenizer_config.json", config, "model_max_length"),
        (encoder, read_json(encoder), "vocab_size"),
    ):
        if not is_count(values.get(key)):
            raise UsageError(f"{path} must say {key}, a positive number")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UsageError where there is none."""
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise UsageError(f"{path} is not a file")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: the model's folder is not complete") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} must hold a JSON object")
    return data


def is_count(value: Any) -> bool:
    """Whether a value from a file is a positive whole number that something real can have."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def _shown(text: str) -> str:
    """A word as it is, anything else quoted: it may hold line ends, or characters that no terminal can print."""
    return text if _is_name(text) else repr(text)
