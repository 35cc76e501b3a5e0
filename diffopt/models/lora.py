"""What a plan reads of a LoRA's file: its content, the parts of the pipeline that it changes, its rank. No torch.

Only safetensors files are read: a pickle can run code. A file counts in a recipe by the SHA-256 of its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffopt.errors import Refusal, UsageError
from diffopt.machine.content import sha256_of
from diffopt.machine.paths import user_path
from diffopt.machine.reading import opened_file
from diffopt.models.weights import PICKLES

FILES = ("path", "swap_path")  # keys of the options that name a file; the second one of hotswap alone
PART = re.compile(r"(unet|transformer|text_encoder)(_\d)?$")  # how diffusers begins the names of tensors
KOHYA_TEXT = re.compile(r"lora_te(\d)?_")  # how kohya's scripts begin those of text encoders, counted from 1
DOWN = re.compile(r"(lora_A|lora_down|lora\.down|_lora\.down)(\.\w+)?\.weight$")  # rank x inputs


class LoraFile(NamedTuple):
    """What the header of a file tells."""

    components: tuple[str, ...]  # attributes of the pipeline; "denoiser" where the names of tensors do not say which
    rank: int | None  # the highest; None where the tensors are no pairs of LoRA's


def with_lora_facts(data: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """The composed ``lora`` group with what its files tell filled in: content, components, rank.

    ``data`` has the keys of a step of the group; an option without a file stays as it is, and so do values of the wrong
    type, for what validates the result. A relative path counts from ``base``. Resolving once more changes nothing.

    Raises:
        UsageError: a file is not there, is no LoRA in safetensors, or not the one whose ``content`` is given.
    """
    resolved = dict(data)
    found: list[LoraFile] = []
    for key in FILES:
        if isinstance(given := data.get(key), str):
            file = _file(given, base, f"lora.{key}")
            found.append(read_lora_facts(file, f"lora.{key}={given}"))
            content = "content" if key == "path" else "swap_content"
            resolved |= {key: str(file), content: _content_of_lora(file, data.get(content), f"lora.{content}")}
    if not found:
        return resolved
    ranks = [lora.rank for lora in found if lora.rank is not None]
    told: dict[str, Any] = {
        "components": sorted({part for lora in found for part in lora.components}),
        "rank": max(ranks, default=None),
        "target_rank": max(ranks, default=None),
    }
    return resolved | {key: value for key, value in told.items() if key in data and data[key] is None}


def read_lora_facts(file: Path, said: str) -> LoraFile:
    """What a file's header says. Raises UsageError, beginning with ``said``, where it is no LoRA."""
    shapes = _shapes(file, said)
    if dora := [name for name in shapes if "dora_scale" in name]:
        raise UsageError(f"{said} is a DoRA ({dora[0]}), whose magnitudes diffusers leaves out; give a plain LoRA.")
    adapted = {name: shape for name, shape in shapes.items() if "lora" in name or ".lokr_" in name}
    if not adapted:
        names = ", ".join(list(shapes)[:2]) or "none"
        raise UsageError(f"{said} holds no LoRA: no tensor has lora in its name (there are: {names}).")
    ranks = [shape[0] for name, shape in adapted.items() if DOWN.search(name) and shape]
    return LoraFile(tuple(sorted({_component_of_tensor(name) for name in adapted})), max(ranks, default=None))


def lora_file_at_hand(path: str, content: str | None) -> Path:
    """The file of a resolved recipe. Raises Refusal where this machine has none, or another one."""
    file = Path(path)
    try:
        found = sha256_of(file)
    except OSError as error:
        raise Refusal(f"the LoRA {file.name} cannot be read here: {error.strerror}") from error
    if content not in (None, found):
        raise Refusal(f"the LoRA {file.name} is not the one that the recipe was made with; compose it again")
    return file


def _file(given: str, base: Path, key: str) -> Path:
    file = user_path(base / user_path(given, key), key)
    if not file.exists():
        raise UsageError(f"{key}={given}: there is no such file.")
    if file.is_dir():
        inside = sorted(path.name for path in file.glob("*.safetensors"))
        there = f", such as {given.rstrip('/')}/{inside[0]}" if inside else "; this folder has no safetensors file"
        raise UsageError(f"{key}={given} is a folder: give the file{there}.")
    if file.suffix in PICKLES:
        raise UsageError(
            f"{key}={given} is a pickle, and loading a pickle can run code. If you trust it, convert it once: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW_FILE)."
        )
    if file.suffix != ".safetensors":
        raise UsageError(f"{key}={given}: only safetensors files are loaded.")
    return file.absolute()


def _shapes(file: Path, said: str) -> dict[str, Sequence[int]]:
    """The shape of each tensor in a file, by name."""
    from safetensors import SafetensorError, safe_open

    try:
        with opened_file(file, said), safe_open(file, framework="numpy") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"{said} cannot be read as safetensors ({' '.join(str(error).split())}); copy or download it again. A "
            "small text file in its place is a Git LFS pointer: run git lfs pull."
        ) from None


def _component_of_tensor(name: str) -> str:
    """The part of the pipeline that a tensor is for. Formats of other tools are for the denoiser, as far as known."""
    first = name.split(".", 1)[0]
    if PART.match(first):
        return first
    kohya = KOHYA_TEXT.match(name)
    if kohya is None:
        return "denoiser"
    return "text_encoder" if kohya[1] in (None, "1") else f"text_encoder_{kohya[1]}"


def _content_of_lora(file: Path, given: Any, key: str) -> str:
    try:
        found = sha256_of(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from None
    if given not in (None, found):
        raise UsageError(
            f"{key}={str(given)[:12]}: this is not the SHA-256 of {file} (it begins with {found[:12]}), so the recipe "
            f"was made with another file; {key}=null takes it."
        )
    return found
