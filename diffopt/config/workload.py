"""The composed workload with its nulls filled in: by the model's customary values, and by what the task asks for."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from diffopt.errors import UsageError
from diffopt.machine.paths import user_path
from diffopt.machine.reading import MIB, read_file
from diffopt.models.pictures import resolve_picture
from diffopt.schema.model import TASKS
from diffopt.schema.words import value_in_words
from diffopt.schema.workload import ASKED_FOR, NEEDS, PICTURES, Workload

CUSTOMARY_PICTURES = {"image": "scene", "mask": "mask", "control": "edges"}  # names in diffopt/models/inputs
CUSTOMARY_STRENGTH = {"img2img": 0.8, "inpaint": 1.0}
CUSTOMARY_CONTROL_SCALE = 1.0
LONGEST_PROMPTS = MIB  # of a file; each row has a copy of the prompts
# Keys that a recipe file may lack, at what they then are: those of the YAML alone, and those added after a release.
PLAIN = ("task", "height", "width", "steps", "guidance")  # a model has a customary value of the same name
CUSTOMARY = (*PLAIN, "prompts", "later_stages", *ASKED_FOR)  # what a model has a customary value for
SAID = (*PLAIN, "frames", "later_stages")  # of these what a person would not look for in a recipe file
UNSAID: dict[str, Any] = {"prompt": None, "prompts_file": None} | {
    name: field.default or None for name, field in Workload.model_fields.items() if not field.is_required()
}


def resolve_workload(data: Mapping[str, Any], model: Mapping[str, Any], typed: frozenset[str]) -> dict[str, Any]:
    """The keys of :class:`Workload` from those of a YAML of the group; of a resolved one, the same.

    What the model or the task cannot do is none of this function's business, nor are values of the wrong type: they
    are left as they are, for the rules and for what validates the result.

    Args:
        data: the composed ``workload``; the keys of UNSAID may be missing.
        model: the resolved ``model``.
        typed: keys that the command line sets itself.

    Raises:
        UsageError: a file is not there or not what it should be; both a prompt and a file of prompts are typed.
    """
    workload = {key: value for key, value in data.items() if key not in ("prompt", "prompts_file")}
    workload |= _prompts(data, model, typed)
    checked_text(data.get("negative_prompt"), "workload.negative_prompt")
    workload |= {key: model[key] for key in PLAIN if key in workload and workload[key] is None}
    workload["later_stages"] = _later_stages(data, model)
    if workload.get("task") in TASKS:
        workload |= {key: _asked_for(key, data.get(key), workload["task"], model) for key in ASKED_FOR}
    return workload


def written_workload_keys(data: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, str]:
    """By the key of the resolved workload, the key that its value was written at, where that is another one.

    Args:
        data: the composed ``workload``, as :func:`resolve_workload` takes it; ``model`` likewise.
    """
    found = {f"workload.{key}": f"model.{key}" for key in (*PLAIN, "frames") if data.get(key) is None}
    if data.get("prompt") is not None:
        found |= {"workload.prompts": "workload.prompt", "workload.prompts.0": "workload.prompt"}
    elif data.get("prompts") is None:
        found["workload.prompts.0"] = "model.prompt"
    if data.get("later_stages") in (None, []):
        for index, _ in enumerate(model.get("cascade") or []):
            stage = f"model.cascade.{index}"
            found[f"workload.later_stages.{index}.guidance"] = f"{stage}.guidance"
            steps = f"{stage}.steps" if data.get("steps") is None else "workload.steps"
            found[f"workload.later_stages.{index}.steps"] = steps
    return found


def _prompts(data: Mapping[str, Any], model: Mapping[str, Any], typed: frozenset[str]) -> dict[str, list[Any]]:
    """Of ``prompt`` and ``prompts_file`` the one on the command line counts; of two in YAML, the file."""
    prompt, file = data.get("prompt"), data.get("prompts_file")
    if {"workload.prompt", "workload.prompts_file"} <= typed and None not in (prompt, file):
        raise UsageError("workload.prompt and workload.prompts_file are both given; leave one out.")
    if file is not None and "workload.prompt" not in typed:
        return {"prompts": read_prompts(file, "workload.prompts_file")}
    if prompt is not None:
        return {"prompts": [checked_text(prompt, "workload.prompt")]}
    return {"prompts": _customary("prompts", data, model)} if data.get("prompts") is None else {}


def read_prompts(name: Any, key: str) -> list[str]:
    """The prompts of a text file, one per line. Raises UsageError, naming ``key``, for what can be none."""
    if isinstance(name, list | dict | bool):
        raise UsageError(f"{key}={value_in_words(name)}: give the path of one text file.")
    path = user_path(str(name), key)
    if not path.exists():
        raise UsageError(f"{key}={name}: there is no such file.")
    try:
        content = read_file(path, f"{key}={name}", LONGEST_PROMPTS).decode("utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{key}={name} cannot be read as UTF-8 text: {error}.") from error
    prompts = [line.strip() for line in content.split("\n") if line.strip()]
    if not prompts:
        raise UsageError(f"{key}={name} has no prompt; it takes one per line.")
    return [checked_text(prompt, f"{key}={name}") for prompt in prompts]


def checked_text(given: Any, key: str) -> Any:
    """A text as it is, with whatever people write: spaces of every width, joiners, marks. Anything else too.

    Raises UsageError, naming ``key``, for bytes that are not UTF-8, and for control characters other than line ends
    and tabs.
    """
    for sign in given if isinstance(given, str) else "":
        match unicodedata.category(sign):
            case "Cs":  # what Python makes of a byte of the command line that it cannot decode
                what, remedy = f"a byte that is not UTF-8 (0x{ord(sign) & 0xFF:02x})", "give it in UTF-8"
            case "Cc" if sign not in "\t\n\r":
                what, remedy = f"a control character (U+{ord(sign):04X})", "leave it out"
            case _:
                continue
        raise UsageError(f"{key}: {given!r:.60} has {what}; {remedy}.")
    return given


def _later_stages(data: Mapping[str, Any], model: Mapping[str, Any]) -> Any:
    """Steps and guidance of the stages after the first: as given, else customary, with the workload's own steps."""
    given, stages = data.get("later_stages"), model.get("cascade") or []
    if given in (None, []):
        own = data.get("steps")
        return [{"steps": stage["steps"] if own is None else own, "guidance": stage["guidance"]} for stage in stages]
    return given


def _asked_for(key: str, given: Any, task: Any, model: Mapping[str, Any]) -> Any:
    """The value of ``key`` for ``task``: as given, else customary; None where the task does not ask for it."""
    if given is None and key not in NEEDS[task]:
        return None
    if key in PICTURES:
        return resolve_picture(CUSTOMARY_PICTURES[key] if given is None else given, f"workload.{key}")
    if given is not None:
        return given
    if key == "frames":
        return model.get("frames") or 1  # a model without is refused by its plan: it has no pipeline for the task
    return CUSTOMARY_STRENGTH[task] if key == "strength" else CUSTOMARY_CONTROL_SCALE


def _customary(key: str, workload: Mapping[str, Any], model: Mapping[str, Any]) -> Any:
    """What a resolved workload has at a key of CUSTOMARY where nobody says anything."""
    if key in PLAIN:
        return model[key]
    if key == "prompts":
        return [model["prompt"]]
    if key == "later_stages":
        return _later_stages({**workload, key: None}, model)
    return _asked_for(key, None, workload["task"] or model["task"], model)


def open_workload(workload: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """A resolved workload with null for what is customary of its model: on another model, that one's value counts.

    Args:
        model: the resolved ``model`` beside it, as a file has it; what it lacks opens nothing.
    """
    found = dict(workload)
    for key in CUSTOMARY:
        try:
            usual = _customary(key, found, model)
        except (KeyError, TypeError, AttributeError):  # what validates the file says what is wrong with it
            continue
        if usual == found.get(key) and isinstance(usual, bool) == isinstance(found.get(key), bool):
            found[key] = None
    return found


def note_on_recipe_file(
    name: str, base: Mapping[str, Any], model: Mapping[str, Any], workload: Mapping[str, Any], typed: frozenset[str]
) -> Iterator[str]:
    """What a recipe file's workload became on another model than it was made for: what is kept, and what follows.

    Args:
        name: of the file.
        base: its data, with a workload of :func:`open_workload`.
        model: the resolved model that is run.
        workload: the resolved workload.
        typed: keys that the command line sets itself.
    """
    before, given = base["model"], base["workload"]
    set_anew = {key.removeprefix("workload.").split(".")[0] for key in typed}
    set_anew |= {"prompts"} if {"prompt", "prompts_file"} & set_anew else set()
    file = [key for key in CUSTOMARY if key not in set_anew and key in given]
    changed = [key for key in file if given[key] is None and workload[key] != _customary(key, given, before)]
    kept = [key for key in file if key in SAID and given[key] is not None]
    kept = [key for key in kept if workload[key] != (usual := _customary(key, workload, model)) and usual is not None]
    if not changed and (before.get("name") == model["name"] or not kept):
        return
    parts = [
        f"workload.{key}={value_in_words(workload[key])} is kept (customary: "
        f"{value_in_words(_customary(key, workload, model))})"
        for key in kept
    ]
    parts += [f"{', '.join(changed)} {'follow' if len(changed) > 1 else 'follows'} the model"] if changed else []
    yield f"model={model['name']}: {name} was made for model={before.get('name')}; {'; '.join(parts)}"
