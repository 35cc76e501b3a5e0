"""Safetensors files of a model folder: which ones are loaded, and what their headers say. Reads no weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from diffopt.errors import UsageError
from diffopt.machine.reading import opened_file
from diffopt.models.index import IndexEntry, ModelIndex, read_model_json

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # names in the header: names in recipes
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}  # by library: the only names they load
LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
MOST_DIMENSIONS = 64  # of a tensor, which torch has too
DTYPE = re.compile(r"[A-Z]+(\d{0,3})(_\w+)?")  # with its bits: BF16 has 16, F8_E4M3 8; BOOL takes 8 without saying so
SHARD = re.compile(r"[\w.-]+\.safetensors")


class Weights(NamedTuple):
    """The weights of one component."""

    files: tuple[Path, ...]
    parameters: int
    dtype: str  # that most parameters are stored in; float32 if unusual


def find_weights(index: ModelIndex, variant: str | None) -> dict[str, tuple[Path, ...]]:
    """The files that the weights of each component are loaded from, by the component's name.

    Raises UsageError, with the way out, where files are missing, pickles, or of a name that nothing loads.
    """
    found = {name: _weight_files(index, name, variant) for name in index.modules}
    for name, files in found.items():
        if not files:
            raise _missing(index, name)
    if variant is not None and not any(_has_variant(index.names(name), variant) for name in found):
        raise UsageError(
            f"{index.folder} has no files of the variant {variant!r}; check model.variant, or set it to null"
        )
    return found


def read_weights(files: tuple[Path, ...]) -> Weights:
    """What the headers of one component's files say, compared with the files' sizes.

    Raises UsageError where a file is truncated or spoiled.
    """
    counts: dict[str, int] = {}
    for file in files:
        for dtype, number in _tensors(file):
            counts[dtype] = counts.get(dtype, 0) + number
    return weights_of(files, counts)


def weights_of(files: tuple[Path, ...], counts: Mapping[str, int]) -> Weights:
    """The weights with so many parameters of each dtype, by the names that headers have for dtypes."""
    if not counts:
        raise UsageError(f"{files[0]} holds no tensors")
    most = max(counts, key=counts.__getitem__)
    return Weights(files, sum(counts.values()), DTYPES.get(most, "float32"))


def _stems(part: IndexEntry) -> tuple[str, ...]:
    """The only names that are loaded; parts that a pipeline brings along may be of either library's kind."""
    return (STEMS[part.library],) if part.library in STEMS else tuple(STEMS.values())


def _weight_files(index: ModelIndex, name: str, variant: str | None) -> tuple[Path, ...]:
    """The files that are loaded: one, or the shards that a JSON file beside them lists."""
    folder, names = index.folder / name, index.names(name)
    mark = f".{variant}" if variant is not None and _has_variant(names, variant) else ""
    for stem in _stems(index.components[name]):
        single, shards = f"{stem}{mark}.safetensors", f"{stem}.safetensors.index{mark}.json"
        # Where both are there, diffusers takes the shards and transformers the single file.
        if shards in names and not (single in names and stem == STEMS["transformers"]):
            return _shards(folder / shards)
        if single in names:
            return (folder / single,)
    return ()


def _has_variant(names: frozenset[str], variant: str) -> bool:
    """Whether diffusers asks this component for the variant: by the second part of any file name."""
    words = (name.split(".") for name in names)
    return any(len(parts) > 1 and parts[1].startswith(variant) for parts in words)


def _shards(path: Path) -> tuple[Path, ...]:
    names = read_model_json(path).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UsageError(f"{path} does not list the files of the weights (weight_map)")
    if not all(isinstance(name, str) and SHARD.fullmatch(name) for name in names.values()):
        raise UsageError(f"{path}: weight_map must name safetensors files beside it")
    return tuple(path.parent / name for name in sorted(set(names.values())))


def _missing(index: ModelIndex, name: str) -> UsageError:
    """Why there is nothing to load, and the way out."""
    folder, present, stems = index.folder / name, sorted(index.names(name)), _stems(index.components[name])
    named = (re.fullmatch(rf"(?:{'|'.join(stems)})\.([^.-]+)[^.]*\.safetensors", file) for file in present)
    variants = [match[1] for match in named if match]
    pickles = [file for file in present if file.endswith(PICKLES)]
    others = [file for file in present if file.endswith(".safetensors")]
    if variants:
        return UsageError(f"{folder} has its weights only as a variant: add model.variant={variants[0]}")
    if others:
        return UsageError(
            f"{folder} has no {stems[0]}.safetensors, the name that is loaded, but {others[0]}: rename it"
        )
    if pickles:
        return UsageError(
            f"{folder} has its weights only as a pickle, {pickles[0]}, and loading a pickle can run code. If you "
            f"trust it, convert it once: diffusers.{index.pipeline}.from_pretrained(DIR, use_safetensors=False)"
            ".save_pretrained(NEW_DIR, safe_serialization=True); then use NEW_DIR"
        )
    return UsageError(f"{folder} has no safetensors file; add one, or draw random weights with model.weights=random")


def _tensors(path: Path) -> list[tuple[str, int]]:
    """Dtype and number of elements of each tensor of a file, from the JSON at its start.

    That JSON comes after its length as 8 bytes, little endian; behind it lie the tensors, without gaps.
    Source: the format's description at github.com/huggingface/safetensors.
    """
    header, data_size = _header(path)
    tensors, ends = [], [0]
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        if not _is_tensor(tensor):
            raise UsageError(f"{path} is spoiled: its header describes the tensor {name!r} wrongly")
        tensors.append((tensor["dtype"], math.prod(tensor["shape"])))
        ends.append(tensor["data_offsets"][1])
    if max(ends) != data_size:
        raise UsageError(
            f"{path} is incomplete: its tensors take {max(ends)} bytes, but {data_size} are there; copy or download it "
            "again"
        )
    return tensors


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and the number of bytes behind it."""
    try:
        with opened_file(path, str(path)) as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, LONGEST_HEADER)))
        size = path.stat().st_size
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; the model's folder is not complete") from None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise UsageError(
            f"{path} is not a safetensors file; a small text file in its place is a Git LFS pointer: run git lfs pull"
        )
    return header, size - 8 - length


def _is_tensor(entry: Any) -> bool:
    """Whether an entry of a header is a dtype, a shape, and the place of as many bytes as those two take."""
    if not isinstance(entry, dict) or not isinstance(dtype := entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2 or len(shape) > MOST_DIMENSIONS:
        return False
    name = DTYPE.fullmatch(dtype)
    return name is not None and math.prod(shape) * int(name[1] or 8) == (offsets[1] - offsets[0]) * 8


def _is_sizes(value: Any) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        return False
    return min(value, default=0) >= 0 and max(value, default=0) < 2**63
