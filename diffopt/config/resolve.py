"""From composed plain data to a cell: nulls filled in, files and devices looked up. The only step that reads any.

What decides the pipeline must stand in the recipe, so everything that depends on this machine (``hardware=auto``,
the content of a local model) is resolved before the recipe is made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diffopt.config import Composed, Composer
from diffopt.config.consent import config_with_consent, config_with_files_located
from diffopt.config.host import note_on_memory_of_host
from diffopt.config.labels import Labels, check_ids_of_file, labels_of_file
from diffopt.config.origins import note_origin, origin_of_recipe_file
from diffopt.config.quality import resolve_quality
from diffopt.config.reference import read_reference, with_references_first
from diffopt.config.request import Request
from diffopt.config.sweep import expand, split_sweep
from diffopt.config.workload import (
    UNSAID,
    note_on_recipe_file,
    open_workload,
    resolve_workload,
    written_workload_keys,
)
from diffopt.errors import UsageError
from diffopt.machine import hardware, plain_yaml
from diffopt.machine.paths import path_of_study, shipped_conf, user_path
from diffopt.models.lora import with_lora_facts
from diffopt.models.pictures import notes_on_pictures
from diffopt.models.prompts import notes_on_prompts
from diffopt.models.resolve import with_model_facts
from diffopt.models.tiny import with_tiny_model_values
from diffopt.recipe.cell import Cell
from diffopt.recipe.explain import explain_invalid_recipe, groups_of_invalid_recipe
from diffopt.recipe.launch import make_launch
from diffopt.recipe.options import option_names, shipped_option
from diffopt.recipe.recipe import Recipe
from diffopt.schema.quality import NOTHING
from diffopt.schema.reference import Reference
from diffopt.schema.runtime import CURRENT, check_runtime_names, resolve_runtime

ResolveModel = Callable[[dict[str, Any], Path], dict[str, Any]]
LOCK_KEYS = ("choices", "recipe", "workload", "measure", "quality", "runtime")


def compose_requests(
    overrides: Sequence[str],
    *,
    multirun: bool = False,
    lock: Path | None = None,
    folders: Sequence[Path] = (),
    trusted: Sequence[Path] = (),
    resolve_model: ResolveModel = with_model_facts,
) -> list[Request]:
    """What a command line asks for, one request per distinct cell, in the order of the sweep.

    Args:
        overrides: Hydra overrides, ``sweep=NAME`` among them with ``multirun``.
        multirun: expand sweeps (``-m``).
        lock: a file that ``diffopt show`` printed; the overrides then change what it says.
        folders: config folders, whose options may be anybody's.
        trusted: config folders of the user's own, whose options may name code and any file.
        resolve_model: fills in the ``model`` group, where its facts are not to come from files or the hub.

    Raises:
        UsageError: for every mistake in the overrides, the YAML or the files they name.
    """
    composer = make_composer(lock, folders, trusted)
    if multirun:
        composed = expand(composer, overrides)
    else:
        if split_sweep(overrides)[0] is not None:
            raise UsageError(
                "sweep=NAME is a matrix of cells, which run, plan and prefetch take with -m (in Python multirun=True)."
            )
        composed = [composer.compose(overrides)]
    resolver = Resolver(composer, resolve_model)
    found = [resolver.request(point) for point in composed]
    outside = [(request.study, request.launch, request.reference) for request in found]
    if any(each != outside[0] for each in outside):
        raise UsageError("study, launch and reference are the same for a whole sweep: give each of them one value.")
    if multirun:
        found = with_references_first(composer, resolver.request, composed, found)
    if found[0].launch.compile_artifact.load is not None and any(request.cell.measure.starts for request in found):
        raise UsageError(
            "measure.starts=true begins with empty compile caches, and launch.compile_artifact.load fills them: choose "
            "another measure, or leave the artifact out."
        )
    check_runtime_names(request.cell.runtime for request in found)
    return list({request.cell.id: request for request in reversed(found)}.values())[::-1]


def make_composer(lock: Path | None, folders: Sequence[Path], trusted: Sequence[Path] = ()) -> Composer:
    """A composer over the shipped options and those in ``folders``, on top of a recipe file where there is one."""
    if folders or trusted:
        composer = Composer(folders, trusted=trusted)
    else:
        files = sorted(shipped_conf().rglob("*.yaml"))
        composer = _composer_of_shipped_options(tuple((str(f), (s := f.stat()).st_mtime_ns, s.st_size) for f in files))
    return composer if lock is None else composer.onto(config_of_lock_file(lock))


@lru_cache(maxsize=1)
def _composer_of_shipped_options(_version: tuple[tuple[str, int, int], ...]) -> Composer:
    """One for as long as their files stay as they are (in a checkout they are edited): what it composed is known."""
    return Composer()


def config_of_lock_file(path: Path) -> Composed:
    """A file that ``diffopt show`` printed, as composed data; plain YAML, nothing in it is executed."""
    if path.is_dir():
        raise UsageError(f"--recipe {path}: a file is wanted, this is a folder. `diffopt show … > FILE` writes one.")
    if not user_path(path, "--recipe").exists():
        raise UsageError(f"--recipe {path}: there is no such file. `diffopt show … > FILE` writes one.")
    data, text = plain_yaml.read_plain_yaml(path)
    data.setdefault("runtime", CURRENT.model_dump())  # files of before there was a choice, as of the next
    data.setdefault("quality", NOTHING.model_dump(mode="json"))
    if set(data) != set(LOCK_KEYS) or not all(isinstance(section, dict) for section in data.values()):
        raise UsageError(
            f"--recipe {path} is not a file that `diffopt show` printed: it must have the keys "
            f"{', '.join(LOCK_KEYS)} and no others. An overlay to compose with goes into conf/recipe/ and is chosen "
            f"with recipe=NAME."
        )
    texts = {"prompt", "prompts_file"} & set(data["workload"])
    unknown = sorted([*(set(data["recipe"]) - set(Recipe.model_fields)), *(f"workload.{text}" for text in texts)])
    if unknown:
        prompts = " It has the prompts themselves, as the list workload.prompts." if "prompt" in unknown[0] else ""
        raise UsageError(f"--recipe {path}: '{unknown[0]}' is not a key there.{prompts}")
    if not all(isinstance(option, str) for option in data["choices"].values()):
        raise UsageError(f"--recipe {path}: 'choices' gives the name of an option for each group.")
    check_ids_of_file(path, text, data)
    workload = open_workload({**UNSAID, **data["workload"]}, data["recipe"].get("model"))
    outside = {"workload": workload, **{key: data[key] for key in ("measure", "quality", "runtime")}}
    choices, labels = labels_of_file(path, data)
    composed = Composed({**data["recipe"], **outside}, choices, labels=labels)
    note_origin(composed.origins, "", composed.data, origin_of_recipe_file(path))
    return composed


class Resolver:
    """Turns composed data into cells; looks each device and model folder up once per command."""

    def __init__(self, composer: Composer, resolve_model: ResolveModel = with_model_facts) -> None:
        self._composer = composer
        self._resolve_model = resolve_model
        self._labels = Labels(composer)
        self._models: dict[str, dict[str, Any]] = {}
        self._auto: dict[str, Any] | None = None
        self._references: dict[str, Reference] = {}

    def request(self, composed: Composed) -> Request:
        for section in ("model", "hardware", "workload", "measure", "quality", "runtime", "launch"):
            if not isinstance(composed.data.get(section), dict):
                raise UsageError(f"'{section}' is missing, or is not a mapping of keys to values.")
        data = config_with_consent(composed)
        recipe = {name: data[name] for name in Recipe.model_fields if name in data}
        recipe["model"] = self._model(data["model"], composed.typed)
        recipe["hardware"] = self._hardware(data["hardware"], composed.typed)
        self._check_backend(composed)
        if isinstance(data.get("lora"), dict):
            recipe["lora"] = with_lora_facts(data["lora"], Path.cwd())
        workload = resolve_workload(data["workload"], recipe["model"], composed.typed)
        runtime = resolve_runtime(data["runtime"], composed.choices["runtime"])
        study = data["study"]
        if study is not None:
            path_of_study(study)
        try:
            quality = resolve_quality(data["quality"], recipe["model"], composed.typed)
            protocols = {"measure": data["measure"], "quality": quality}
            asked = {"recipe": recipe, "workload": workload, **protocols, "runtime": runtime}
            cell = Cell.from_plain({"choices": composed.choices, **asked})
        except ValidationError as error:
            said = explain_invalid_recipe(error, written=written_workload_keys(data["workload"], recipe["model"]))
            raise UsageError(f"{said}{self._origin(error, composed.choices)}") from error
        cell = self._labels.label(cell, composed)
        notes = tuple(self._notes(composed, cell, recipe["model"], workload))
        cell = cell.model_copy(update={"notes": notes}) if notes else cell
        reference = self._reference(data["reference"])
        return Request(cell=cell, launch=make_launch(data["launch"]), study=study, reference=reference)

    def _reference(self, text: Any) -> Reference:
        """Read once for all cells of a command."""
        if (key := str(text)) not in self._references:
            self._references[key] = read_reference(self._composer, text)
        return self._references[key]

    def _notes(self, composed: Composed, cell: Cell, model: dict[str, Any], workload: dict[str, Any]) -> Iterator[str]:
        """What only composing knows of a cell: where its values come from, and what the files say that it names."""
        base = self._composer.base
        if base is not None and "prompts" in composed.data["workload"]:  # else the group was chosen anew
            file = next(iter(base.origins.values())).file  # all of it is from one
            yield from note_on_recipe_file(file.name, base.data, model, workload, composed.typed)
        yield from notes_on_prompts(cell.recipe.model, cell.workload)
        yield from notes_on_pictures(cell.workload, cell.recipe.model.size_multiple)
        yield from self._composer.notes
        yield from note_on_memory_of_host(cell)

    def _model(self, data: dict[str, Any], typed: frozenset[str] = frozenset()) -> dict[str, Any]:
        data = with_tiny_model_values(data, typed)
        key = json.dumps(data, sort_keys=True)
        if key not in self._models:
            resolved = self._resolve_model({**data, "cascade": []}, Path.cwd())
            stages = [self._model(self._stage(stage, data)) for stage in _stages(data.get("cascade"))]
            self._models[key] = {**resolved, "cascade": stages}
        return self._models[key]

    def _stage(self, stage: Any, first: Mapping[str, Any]) -> dict[str, Any]:
        """A later stage of a cascade: complete data in a lock, in YAML the name of a model option."""
        if isinstance(stage, dict):
            return stage
        if stage not in self._composer.options("model"):
            raise UsageError(f"model.cascade: there is no model option '{stage}'. `diffopt ls model` lists them.")
        composed = self._composer.compose([f"model={stage}"])
        found: dict[str, Any] = config_with_files_located(composed, frozenset({"model"}))["model"]
        if found.get("cascade"):
            raise UsageError(f"model.cascade: {stage} is a cascade itself; name its stages one by one.")
        return {**found, "weights": first.get("weights")}

    def _hardware(self, data: dict[str, Any], typed: frozenset[str]) -> dict[str, Any]:
        if data.get("name") != "auto":
            if data.get("device") == "cpu" and data.get("memory_gib") and "hardware.memory_gib" not in typed:
                return {**data, "memory_gib": hardware.host_memory_gib()}  # a recipe file's is another machine's
            return data
        if values := sorted(key for key in typed if key.startswith("hardware.")):
            raise UsageError(
                f"{values[0]}: hardware=auto takes what this machine has. Choose hardware=NAME to change it."
            )
        if self._auto is None:
            listed = [option for option in self._composer.options("hardware") if option != "auto"]
            self._auto = hardware.hardware_at_hand(listed, partial(self._composer.read_option, "hardware"))
        return self._auto

    def _check_backend(self, composed: Composed) -> None:
        """What a backend needs stands in its own option: under another option's name it would keep that one's needs."""
        if "attention.backend" not in composed.typed:
            return
        backend, chosen = composed.data["attention"].get("backend"), composed.choices["attention"]
        names = option_names("attention")
        having = [name for name in names if shipped_option("attention", name).get("backend") == backend]
        if having and chosen not in having:
            raise UsageError(
                f"attention.backend={backend}: attention={chosen} says what another backend needs. Choose "
                f"{' or '.join(f'attention={name}' for name in having)}."
            )

    def _origin(self, error: ValidationError, choices: Mapping[str, str]) -> str:
        """The user's own files among the options that the error is about."""
        files = [
            self._composer.own_file(group, choices[group])
            for group in groups_of_invalid_recipe(error)
            if group in choices
        ]
        named = ", ".join(str(path) for path in dict.fromkeys(files) if path is not None)
        return f" (see {named})" if named else ""


def _stages(cascade: Any) -> list[Any]:
    if cascade is None:
        return []
    if not isinstance(cascade, list) or not all(isinstance(stage, str | dict) for stage in cascade):
        raise UsageError("model.cascade: the later stages are a list of names of model options, such as [a, b].")
    return cascade


def cell_from_config(data: dict[str, Any]) -> Cell:
    """Validate plain data as a cell."""
    try:
        return Cell.from_plain(data)
    except ValidationError as error:
        raise UsageError(explain_invalid_recipe(error)) from error
