"""A pipeline's folder in the Hugging Face layout: its parts, and the small files that each of them needs.

Nothing in a folder is trusted: whatever its files hold, the only exception is UsageError.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from diffopt.errors import UsageError
from diffopt.machine.reading import MIB, read_file
from diffopt.models.classes import SEVERAL, Family
from diffopt.models.families import family_of_pipeline
from diffopt.models.kinds import Kind, kind_of_component
from diffopt.models.named_code import check_config_names_no_kernel

LONGEST_JSON = 256 * MIB  # of a file; tokenizers with large vocabularies have some 30
LIBRARIES = ("diffusers", "transformers")
NEVER_LOADED = frozenset({"safety_checker", "watermarker"})
# For adapters and safety checkers, except in families that read a picture with them.
LEFT_OUT = NEVER_LOADED | {"feature_extractor", "image_encoder"}
LONGEST_NAME = 200  # of a library; file systems take 255
NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)  # of folders and attributes: stays inside of the model's folder
TEXT_ENCODER = re.compile(r"text_encoder|language|^bert$")  # names of components
ADAPTER = "adapter_config.json"  # peft's
CONFIG_SUFFIXES = (".json", ".txt", ".model", ".jinja")  # of small files that components are loaded from
VAE_NAMES = ("vae", "movq", "vqvae")  # that diffusers' pipelines give it


class IndexEntry(NamedTuple):
    """One part of a pipeline, as model_index.json names it."""

    library: str
    class_name: str
    kind: Kind = "module"  # a part with weights; a processor prepares pictures, or pictures and text, for one

    @property
    def module(self) -> str:
        """The Python module that has the class."""
        return self.library if self.library in LIBRARIES else f"diffusers.pipelines.{self.library}"


@dataclass(frozen=True)
class ModelIndex:
    """What model_index.json says: the pipeline's class, and each part that is loaded, by its name."""

    folder: Path
    pipeline: str
    components: dict[str, IndexEntry]
    absent: frozenset[str] = frozenset()  # parts that it names and that are not loaded
    files: frozenset[str] | None = None  # names within the folder, also of those on the hub; None: what lies there

    @property
    def modules(self) -> dict[str, IndexEntry]:
        """The parts with weights."""
        return {name: part for name, part in self.components.items() if part.kind == "module"}

    @property
    def text_encoders(self) -> tuple[str, ...]:
        return tuple(sorted(name for name in self.modules if TEXT_ENCODER.search(name)))

    @property
    def vae(self) -> str | None:
        return next((name for name in VAE_NAMES if name in self.modules), None)

    @property
    def family(self) -> Family | None:
        return family_of_pipeline(self.pipeline)

    def without_text(self) -> ModelIndex:
        """The parts that are left where prompt embeddings are given: no text encoders, and no tokenizers."""
        tokenizers = {name for name, part in self.components.items() if part.kind == "tokenizer"}
        dropped = {*self.text_encoders, *tokenizers}
        kept = {name: part for name, part in self.components.items() if name not in dropped}
        return replace(self, components=kept, absent=self.absent | dropped)

    def config_paths(self, component: str) -> list[Path]:
        """The small files that a component is loaded from."""
        return sorted(path for path in (self.folder / component).glob("*") if path.suffix in CONFIG_SUFFIXES)

    def names(self, component: str) -> frozenset[str]:
        """Names of the files right in a component's folder; of the top folder for ``""``."""
        return _names_in_folder(self.folder, self.files, component)


def read_model_index(folder: Path, files: frozenset[str] | None = None) -> ModelIndex:
    """The model_index.json of ``folder``. Raises UsageError where it or a part is malformed or names code."""
    path = folder / "model_index.json"
    index = read_model_json(path)
    pipeline = index.get("_class_name")
    if isinstance(pipeline, list) or "custom_pipeline" in index:
        raise UsageError(
            f"{path} names a custom pipeline, which is code from the folder; diffopt loads only pipeline classes of "
            "diffusers"
        )
    if not _is_name(pipeline):
        raise UsageError(f"{path} does not say the pipeline's class (_class_name)")
    left_out, absent = _left_out(str(pipeline)), set()
    components: dict[str, IndexEntry] = {}
    for name, entry in index.items():
        if name not in LEFT_OUT and not isinstance(entry, list):
            continue  # a setting of the pipeline, such as requires_safety_checker
        part = _read_component(path, name, entry, checked=name not in left_out)
        if part is not None and name not in left_out:
            _check_single(path, name, part.class_name)
            names = _names_in_folder(folder, files, name)
            _check_config(folder / name, names)
            components[name] = part._replace(kind=kind_of_component(part.module, part.class_name, names))
        else:
            absent.add(name)
    return ModelIndex(folder, str(pipeline), components, frozenset(absent), files)


def _check_single(path: Path, name: str, class_name: str) -> None:
    if class_name in SEVERAL:
        what, attribute = SEVERAL[class_name]
        raise UsageError(
            f"{path}: {name} is a {class_name}, several {what} in one, each in a folder of its own, and a workload has "
            f"one control map; save the pipeline with one of them, pipe.register_modules({name}=pipe.{name}."
            f"{attribute}[0]), by pipe.save_pretrained(DIR)"
        )


def _check_config(folder: Path, names: frozenset[str]) -> None:
    """Raises UsageError for a component by which transformers would load more than it is."""
    if ADAPTER in names:
        raise UsageError(
            f"{folder} has {ADAPTER}, by which transformers would load more weights, also from a pickle; take it out, "
            "and give the adapter as a LoRA: lora=live lora.path=FILE.safetensors"
        )
    if "config.json" in names and (folder / "config.json").exists():
        check_config_names_no_kernel(folder / "config.json", read_model_json(folder / "config.json"))


def _names_in_folder(folder: Path, files: frozenset[str] | None, component: str) -> frozenset[str]:
    if files is None:
        place = folder / component
        try:
            return frozenset(os.listdir(place) if place.is_dir() else ())
        except OSError as error:
            raise UsageError(f"{place} cannot be read: {error.strerror}") from None
    start = f"{component}/" if component else ""
    below = (name.removeprefix(start) for name in files if name.startswith(start))
    return frozenset(name for name in below if "/" not in name)


def _left_out(pipeline: str) -> frozenset[str]:
    """Names of parts that the pipeline draws without; of an unknown class only those that are never loaded."""
    known = family_of_pipeline(pipeline)
    return NEVER_LOADED if known is None else LEFT_OUT - {*known.pictures}


def _read_component(path: Path, name: str, entry: Any, *, checked: bool) -> IndexEntry | None:
    """One entry of the index; None for ``[null, null]``, a part that the pipeline does without, and for settings."""
    if entry == [None, None] or (name not in LEFT_OUT and not any(isinstance(item, str) for item in entry)):
        return None
    if not _is_name(name):
        raise UsageError(f"{path}: {name!r} cannot be the name of a component; letters, digits and '_' can")
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(item, str) for item in entry):
        raise UsageError(f"{path}: {name} must be [library, class], both text, or [null, null]")
    library, class_name = entry
    if checked and not (_is_known(library) and _is_name(class_name)):
        raise UsageError(
            f"{path}: {name} is {_shown(library)}.{_shown(class_name)}, which is custom code; diffopt loads only "
            f"components of {' and '.join(LIBRARIES)}"
        )
    return IndexEntry(library, class_name)


def check_model_files(index: ModelIndex, weights: str) -> None:
    """UsageError unless each part has the small files that it is loaded from; ``weights`` as in the model's option."""
    for name, part in index.components.items():
        folder = index.folder / name
        match part.kind:
            case "module":
                read_model_json(folder / "config.json")
            case "scheduler":
                read_model_json(folder / "scheduler_config.json")
            case "guider":
                read_model_json(folder / "guider_config.json")
            case "processor":
                _check_processor(folder)
            case _:
                _check_tokenizer(folder, part.class_name, weights)


def _check_processor(folder: Path) -> None:
    """One of its two files is enough: which one depends on the version of transformers that saved it."""
    paths = [folder / "preprocessor_config.json", folder / "processor_config.json"]
    for path in [path for path in paths if path.exists()] or paths[:1]:
        read_model_json(path)


def _check_tokenizer(folder: Path, class_name: str, weights: str) -> None:
    """Other tokenizers than CLIP's name their files in their own ways; those are left to transformers."""
    files = ("tokenizer_config.json", "tokenizer.json", "vocab.json")
    present = {name: read_model_json(folder / name) for name in files if (folder / name).exists()}
    if not class_name.startswith("CLIPTokenizer"):
        return
    if (folder / "merges.txt").is_file():
        present["merges.txt"] = {}
    if "tokenizer.json" in present or {"vocab.json", "merges.txt"} <= present.keys():
        return
    if weights != "pretrained" and "vocab.json" not in present:
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
        (encoder, read_model_json(encoder), "vocab_size"),
    ):
        if not is_size_in_model_config(values.get(key)):
            raise UsageError(f"{path} must say {key}, a positive number")


def read_model_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UsageError where there is none."""
    try:
        data = json.loads(read_file(path, str(path), LONGEST_JSON))
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: the model's folder is not complete") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} must hold a JSON object")
    return data


def is_size_in_model_config(value: Any) -> bool:
    """Whether a value from a file is a positive whole number that something real can have."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


@functools.cache
def _is_known(library: str) -> bool:
    """Whether components of the library are code of diffusers or transformers: some pipelines bring their own."""
    if library in LIBRARIES:
        return True
    found = importlib.util.find_spec("diffusers") if _is_name(library) and len(library) < LONGEST_NAME else None
    places = found.submodule_search_locations if found is not None else None
    return any((Path(place) / "pipelines" / library / "__init__.py").is_file() for place in places or ())


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def _shown(text: str) -> str:
    """A word as it is, anything else quoted: it may hold line ends, or characters that no terminal can print."""
    return text if _is_name(text) else repr(text)
