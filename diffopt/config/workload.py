"""The composed workload with its nulls filled in: by the model's customary values, and by what the task asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffopt.errors import UsageError
from diffopt.machine.paths import user_path
from diffopt.models.pictures import resolve_picture
from diffopt.schema.model import TASKS
from diffopt.schema.workload import ASKED_FOR, NEEDS, PICTURES, Workload

CUSTOMARY_PICTURES = {"image": "scene", "mask": "mask", "control": "edges"}  # names in diffopt/models/inputs
CUSTOMARY_STRENGTH = {"img2img": 0.8, "inpaint": 1.0}
CUSTOMARY_CONTROL_SCALE = 1.0
# Keys that a recipe file may lack, at what they then are: those of the YAML alone, and those added after a release.
UNSAID: dict[str, Any] = {"prompt": None, "prompts_file": None} | {
    name: None for name, field in Workload.model_fields.items() if not field.is_required()
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
    for key in ("task", "height", "width", "steps", "guidance"):
        if key in workload and workload[key] is None:
            workload[key] = model[key]
    workload["later_stages"] = _later_stages(data, model)
    if workload.get("task") in TASKS:
        workload |= {key: _asked_for(key, data.get(key), workload["task"], model) for key in ASKED_FOR}
    return workload


def _prompts(data: Mapping[str, Any], model: Mapping[str, Any], typed: frozenset[str]) -> dict[str, list[Any]]:
    """Of ``prompt`` and ``prompts_file`` the one on the command line counts; of two in YAML, the file."""
    prompt, file = data.get("prompt"), data.get("prompts_file")
    if {"workload.prompt", "workload.prompts_file"} <= typed and None not in (prompt, file):
        raise UsageError("workload.prompt and workload.prompts_file are both given; leave one out.")
    if file is not None and "workload.prompt" not in typed:
        return {"prompts": _read_prompts(file)}
    if prompt is not None:
        return {"prompts": [prompt]}
    return {} if "prompts" in data else {"prompts": [model["prompt"]]}


def _read_prompts(name: Any) -> list[str]:
    path = user_path(str(name), "workload.prompts_file")
    if not path.exists() or path.is_dir():
        raise UsageError(f"workload.prompts_file={name}: there is no such file.")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise UsageError(f"workload.prompts_file={name} cannot be read as UTF-8 text: {error}.") from error
    prompts = [line.strip() for line in content.split("\n") if line.strip()]
    if not prompts:
        raise UsageError(f"workload.prompts_file={name} has no prompt; it takes one per line.")
    if odd := [prompt for prompt in prompts if not prompt.replace("\t", " ").isprintable()]:
        raise UsageError(f"workload.prompts_file={name} has a line that is no text: {odd[0]!r:.60}.")
    return prompts


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
