"""Safetensors files of a model folder: which ones are loaded, and what their headers say. Reads no weights."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from diffopt.errors import UsageError

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # names in the header: names in recipes
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def weight_files(component: Path, variant: str | None) -> list[Path]:
    """The safetensors files of a component's folder that diffusers loads: the variant's, else the plain ones."""
    found = sorted(component.glob("*.safetensors"))
    plain = [file for file in found if "." not in file.stem]
    if variant is None:
        return plain
    name = re.compile(rf"[^.]+\.{re.escape(variant)}(-\d+-of-\d+)?\.safetensors")
    return [file for file in found if name.fullmatch(file.name)] or plain


def check_weights(component: Path, variant: str | None, pipeline_class: str) -> None:
    """UsageError, with the way out, unless the component has its weights as safetensors."""
    if weight_files(component, variant):
        return
    present = sorted(component.glob("*"))
    pickles = [file.name for file in present if file.suffix in PICKLES]
    variants = [file.suffixes[0][1:].split("-")[0] for file in present if file.suffix == ".safetensors"]
    if variants:
        raise UsageError(f"{component} has its weights only as a variant: add model.variant={variants[0]}")
    if pickles:
        raise UsageError(
            f"{component} has its weights only as a pickle, {pickles[0]}, and loading a pickle can run code. If you "
            f"trust it, convert it once: diffusers.{pipeline_class}.from_pretrained(DIR, use_safetensors=False)"
            ".save_pretrained(NEW_DIR, safe_serialization=True); then use NEW_DIR"
        )
    raise UsageError(f"{component} has no safetensors file; add one, or draw random weights with model.weights=random")


def stored(component: Path, variant: str | None) -> tuple[int, str]:
    """Number of parameters of a component, and the dtype that most of them are stored in (float32 if unusual)."""
    counts: dict[str, int] = {}
    for file in weight_files(component, variant):
        for name, tensor in _header(file).items():
            if name != "__metadata__":
                counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    most = max(counts, key=counts.__getitem__, default="F32")
    return sum(counts.values()), DTYPES.get(most, "float32")


def _header(path: Path) -> dict[str, dict[str, Any]]:
    """The JSON at the start of a safetensors file, after its length as 8 bytes, little endian.

    Source: the format's description at github.com/huggingface/safetensors.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, path.stat().st_size))
    try:
        header: dict[str, dict[str, Any]] = json.loads(text)
    except ValueError:
        raise UsageError(
            f"{path} is not a safetensors file; a small text file in its place is a Git LFS pointer: run git lfs pull"
        ) from None
    return header
