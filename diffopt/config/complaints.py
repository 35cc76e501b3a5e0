"""What is wrong with a command line or a config, in one paragraph: what, where, what instead."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override, QuotedString

from diffopt.config.meant import is_model_itself
from diffopt.models.resolve import OLD_TINY
from diffopt.schema.words import PRECISION_OF_DTYPE, did_you_mean

TEXTS = ("workload.prompt", "workload.negative_prompt")
PROMPTS_FILE = "workload.prompts_file=FILE"
SEVERAL_PROMPTS = f" Several prompts stand in a file: {PROMPTS_FILE}."
# What other words for an option are called here: torch's and those for any GPU.
OPTION_WORDS = {("precision", dtype): f"precision={name}" for dtype, name in PRECISION_OF_DTYPE.items()}
OPTION_WORDS |= {("hardware", word): "hardware=auto, which takes the GPU of this machine" for word in ("gpu", "cuda")}
# What arguments of diffusers are called here.
KEY_WORDS = {
    "num_inference_steps": "workload.steps",
    "guidance_scale": "workload.guidance",
    "num_images_per_prompt": "workload.batch_size",
    "num_frames": "workload.frames",
    "torch_dtype": "precision.dtype",
    "controlnet_conditioning_scale": "workload.control_scale",
}


def _quoting(key: str) -> str:
    """How a text is given whose signs mean something to Hydra."""
    file = f", or put prompts one per line into a file: {PROMPTS_FILE}" if key == TEXTS[0] else ""
    return f"Quote it for Hydra inside the shell's quotes, '{key}=\"a cat, a dog (in oil)\"'{file}."


def unknown_option(group: str, option: str, options: Sequence[str]) -> str:
    family = option.removeprefix(OLD_TINY)
    if group == "model" and family != option and family in options:
        return f"model={option}: it is model={family} model.weights=tiny now."
    if group == "model" and "/" in option:
        return (
            f"model={option}: that is no folder with a model_index.json, and no ORG/NAME of the hub. diffopt ls model "
            "lists the models that are known by name."
        )
    other = OPTION_WORDS.get((group, option.lower()))
    near = did_you_mean(option, options) if other is None else f" Write {other}."
    return (
        f"{group}={option}: the group '{group}' has no option '{option}'.{near} "
        f"Its options are {', '.join(options)} (diffopt ls {group} says what each does)."
    )


def unknown_sibling(path: Path, group: str, sibling: str, options: Sequence[str]) -> str:
    """A name in the defaults list of an option's file that is no option of its group."""
    return (
        f"{path}: its defaults extend '{sibling}', and the group '{group}' has no option of that name."
        f"{did_you_mean(sibling, options)} Its options are {', '.join(options)}."
    )


def complaint_about_override(
    override: Override,
    groups: Sequence[str],
    options: Callable[[str], list[str]],
    unknown: Callable[[str, str], str],
) -> str | None:
    """What is wrong with a parsed override as far as the names of groups and options tell."""
    key = override.key_or_group
    if override.is_hydra_override() or override.package is not None or "@" in str(override.input_line).split("=")[0]:
        return (
            f"{override.input_line}: Hydra itself is not configured here, and options cannot be moved to other "
            f"packages. Results go where study=NAME says; sweeps are run with -m."
        )
    if key not in groups:
        return _about_value(override)
    if override.is_delete():
        return f"{override.input_line}: a group cannot be deleted. Write {key}=none or another of its options."
    if override.is_add() or override.is_force_add():
        return f"{override.input_line}: the group '{key}' is always there, so leave out the '+'."
    if override.is_sweep_override():
        values: list[Any] = [] if _is_glob(override) else list(override.sweep_iterator())
    else:
        values = [override.value()]
    for value in values:
        text = value.text if isinstance(value, QuotedString) else value
        if text is None:
            none = " Write none, which is an option." if "none" in options(key) else ""
            return f"{key}=null: null is not an option.{none} Its options are {', '.join(options(key))}."
        if isinstance(text, (dict, list)):
            return f"{override.input_line}: choose an option by its name. They are {', '.join(options(key))}."
        if str(text) not in options(key) and not (key == "model" and is_model_itself(str(text))):
            return unknown(key, str(text))
    return None


def _is_glob(override: Override) -> bool:
    return type(override._value).__name__ == "Glob"


def _about_value(override: Override) -> str | None:
    if override.is_delete() or override.is_add() or override.is_force_add():
        return (
            f"{override.input_line}: keys are neither added nor removed; every option lists all of its keys. "
            f"Write {override.key_or_group}=VALUE to set one."
        )
    return _about_text(override) if override.key_or_group in TEXTS and not _is_glob(override) else None


def _about_text(override: Override) -> str | None:
    """A text that Hydra's grammar reads as something else: a number, a truth value, a list."""
    values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    odd = [value for value in values if not isinstance(value, str | QuotedString | None)]
    if not odd:
        return None
    key, text = str(override.input_line).split("=", 1)
    read = {bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "a mapping"}
    quoted = shlex.quote(f'{key}="{text}"')
    said = f"{override.input_line}: Hydra reads {read.get(type(odd[0]), 'no text')} here, and a prompt is a text. "
    if override.is_sweep_override():
        return f"{said}{_quoting(key)}"
    said += f"Quote it for Hydra inside the shell's quotes, {quoted}."
    return said + (SEVERAL_PROMPTS if key == TEXTS[0] and list in map(type, odd) else "")


def unparsable_override(text: str, error: str) -> str:
    if "=" not in text or text.startswith("-"):
        return f"'{text}' is not an override. Write KEY=VALUE, such as compile=default or workload.steps=20."
    key, value = text.split("=", 1)
    if re.search(r"(^|,)\s*(,|$)", value) and not {'"', "'"} & set(value):
        text_too = f" {_quoting(key)}" if key in TEXTS else ""
        return (
            f"{text}: there is an empty value beside a comma. Leave the comma out, or write the value that is "
            f"missing.{text_too}"
        )
    hint = _quoting(key) if key in TEXTS else "Quote the value: 'key=\"value\"'."
    return f"{key}: its value has signs that Hydra's grammar takes in quotes only ({_first_line(error)}). {hint}"


def ambiguous_override(error: str, overrides: Sequence[Override]) -> str:
    swept = next(override for override in overrides if override.is_sweep_override())
    key = swept.get_key_element()
    hint = _quoting(key) if key in TEXTS else f"For one value that holds a comma, quote it: '{key}=\"…\"'."
    return (
        f"{swept.input_line} gives '{key}' several values, which run, plan and prefetch take with -m (in Python "
        f"multirun=True). {hint}"
    )


def unknown_key(override: Override, data: Mapping[str, Any], *, below: str | None = None) -> str:
    """A dotted key that the composed data does not have; ``below`` is an unknown key inside a mapping given to it."""
    node: Any = data
    parts = [*override.key_or_group.split("."), *([below] if below else [])]
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth])
        if not isinstance(node, Mapping):
            return f"{override.input_line}: '{where}' is a value, there is nothing below it to set."
        if part not in node:
            place, keys = f"'{where}'" if where else "the configuration", [str(key) for key in node]
            elsewhere = [] if part == "prompts" else _keys_named(part, data)  # those that are judged are others
            near = f" Did you mean {' or '.join(elsewhere)}?" if elsewhere else did_you_mean(part, keys)
            near += SEVERAL_PROMPTS if part == "prompts" else ""
            return f"{override.input_line}: {place} has no key '{part}'.{near} It has {', '.join(keys)}."
        node = node[part]
    raise ValueError(f"{override.input_line} is known")


def _keys_named(name: str, data: Mapping[str, Any]) -> list[str]:
    """The dotted keys, one group deep, that end in ``name``, or that stand for diffusers' word ``name``."""
    if name in KEY_WORDS:
        return [KEY_WORDS[name]]
    found = [f"{group}.{name}" for group, values in data.items() if isinstance(values, Mapping) and name in values]
    asked = f"workload.{name}"  # a model has its customary values at the same names
    return [asked] if asked in found else found


def key_of_other_options(override: Override, group: str, option: str, having: Sequence[str]) -> str:
    """A key that the chosen option of a group has not, and others have."""
    key = override.key_or_group.split(".")[1]
    chosen = f"{override.input_line}: {group}={option} is chosen, which has no key '{key}'."
    return f"{chosen} Choose one that has it, such as {group}={' or '.join(having)}."


def hydra_composition_failure(error: str) -> str:
    return f"These options cannot be composed: {' '.join(error.split('Config search path:')[0].split())}"


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].strip() if text.strip() else "no further detail"
