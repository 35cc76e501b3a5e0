"""From composed plain data to a cell: nulls filled in, files and devices looked up. The only step that reads any.

What decides the pipeline must stand in the recipe, so everything that depends on this machine (``hardware=auto``,
the content of a local model) is resolved before the recipe is made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from diffopt import hardware, model_files
from diffopt.cell import Cell
from diffopt.compose import Composed, Composer
from diffopt.compose.sweep import expand, split_sweep
from diffopt.errors import UsageError
from diffopt.explain import explain
from diffopt.recipe import STEP_GROUPS

LOCK_KEYS = ("choices", "recipe", "workload", "measure")


@dataclass(frozen=True)
class Request:
    """A cell, the options that led to it, and where and how it is to run."""

    cell: Cell
    choices: Mapping[str, str]
    launch: Mapping[str, Any]
    study: str | None


def requests(
    overrides: Sequence[str], *, multirun: bool = False, lock: Path | None = None, folders: Sequence[Path] = ()
) -> list[Request]:
    """What a command line asks for, one request per distinct cell, in the order of the sweep.

    Args:
        overrides: Hydra overrides, ``sweep=NAME`` among them with ``multirun``.
        multirun: expand sweeps (``-m``).
        lock: a file that ``diffopt show`` printed; the overrides then change what it says.
        folders: the user's config folders.

    Raises:
        UsageError: for every mistake in the overrides, the YAML or the files they name.
    """
    composer = Composer(folders, base=read_lock(lock) if lock else None)
    if multirun:
        composed = expand(composer, overrides)
    else:
        if split_sweep(overrides)[0] is not None:
            raise UsageError("sweep=NAME is a matrix of cells: add -m to run or plan it.")
        composed = [composer.compose(overrides)]
    resolver = Resolver(composer)
    distinct: dict[str, Request] = {}
    for point in composed:
        request = resolver.request(point)
        distinct.setdefault(request.cell.id, request)
    return list(distinct.values())


def read_lock(path: Path) -> Composed:
    """A file that ``diffopt show`` printed, as composed data; plain YAML, nothing in it is executed."""
    if not path.is_file():
        raise UsageError(f"--recipe {path}: there is no such file. `diffopt show … > FILE` writes one.")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or set(data) != set(LOCK_KEYS) or not all(isinstance(v, dict) for v in data.values()):
        raise UsageError(
            f"--recipe {path} is not a file that `diffopt show` printed: it must have the keys "
            f"{', '.join(LOCK_KEYS)} and no others. An overlay to compose with goes into conf/recipe/ and is chosen "
            f"with recipe=NAME."
        )
    workload = {"prompt": None, "prompts_file": None, **data["workload"]}
    composed = {**data["recipe"], "workload": workload, "measure": data["measure"]}
    return Composed(data=composed, choices={str(k): str(v) for k, v in data["choices"].items()})


class Resolver:
    """Turns composed data into cells; looks each device and model folder up once per command."""

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
        self._models: dict[str, dict[str, Any]] = {}
        self._auto: dict[str, Any] | None = None

    def request(self, composed: Composed) -> Request:
        data = composed.data
        for section in ("model", "hardware", "workload", "measure"):
            if not isinstance(data.get(section), dict):
                raise UsageError(f"'{section}' is missing, or is not a mapping of keys to values.")
        recipe = {group: data[group] for group in STEP_GROUPS if group in data}
        recipe["model"] = self._model(data["model"])
        recipe["hardware"] = self._hardware(data["hardware"])
        workload = _workload(data["workload"], recipe["model"])
        cell = make_cell({"recipe": recipe, "workload": workload, "measure": data["measure"]})
        study = data["study"]
        if study is not None and not isinstance(study, str):
            raise UsageError(f"study={study}: a study has a name or a path. Quote a number: 'study=\"{study}\"'.")
        return Request(cell=cell, choices=composed.choices, launch=data["launch"], study=study)

    def _model(self, data: dict[str, Any]) -> dict[str, Any]:
        key = json.dumps(data, sort_keys=True)
        if key not in self._models:
            self._models[key] = model_files.resolve_model(data, Path.cwd())
        return self._models[key]

    def _hardware(self, data: dict[str, Any]) -> dict[str, Any]:
        if data.get("name") != "auto":
            return data
        if self._auto is None:
            listed = [option for option in self._composer.options("hardware") if option != "auto"]
            self._auto = hardware.resolve_auto({n: self._composer.read_option("hardware", n) for n in listed})
        return self._auto


def _workload(data: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """The workload with prompts read and the model's customary values in place of null."""
    workload = {key: value for key, value in data.items() if key not in ("prompt", "prompts_file")}
    if data["prompts_file"] is not None:
        workload["prompts"] = _read_prompts(data["prompts_file"])
    elif data["prompt"] is not None:
        workload["prompts"] = [data["prompt"]]
    elif "prompts" not in workload:
        raise UsageError("workload.prompt=null: give a prompt, or a file of them with workload.prompts_file=FILE.")
    for key in ("height", "width", "steps", "guidance"):
        if workload[key] is None:
            workload[key] = model[key]
    return workload


def _read_prompts(name: Any) -> list[str]:
    path = Path(str(name)).expanduser()
    if not path.is_file():
        raise UsageError(f"workload.prompts_file={name}: there is no such file.")
    try:
        prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UsageError(f"workload.prompts_file={name} is not UTF-8 text: {error}.") from error
    if not prompts:
        raise UsageError(f"workload.prompts_file={name} has no prompt; it takes one per line.")
    return prompts


def make_cell(data: dict[str, Any]) -> Cell:
    """Validate plain data as a cell. Strict: what YAML gives is what counts, nothing is converted."""
    try:
        return Cell.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise UsageError(explain(error)) from error
