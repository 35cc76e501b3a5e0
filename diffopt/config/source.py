"""A source of configs that is data and nothing else.

Hydra reads YAML through a config source. This one serves the shipped ``conf/`` and the user's folders, and refuses
everything by which a YAML file could make Hydra execute code or reach beyond its own group: ``_target_``, keys with
``()``, interpolations, ``hydra`` settings, packages, ``@`` in a defaults list. Hydra 1.3.8 would act on all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf

from diffopt.errors import UsageError
from diffopt.machine import plain_yaml
from diffopt.recipe.named_files import is_inside_recipe_folder
from diffopt.recipe.recipe import GROUP_ORDER

OVERLAY_KEYS = {"defaults", "workload"}
OVERLAID = set(GROUP_ORDER) - {"recipe", "sweep"}  # groups of which a recipe may choose an option
OPTION = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
STRANGERS = "strangers"  # provider, in Hydra's word, of what lies in a folder that the command line does not trust


class DataSource(FileConfigSource):
    """Configs below one folder. Only the primary config of the shipped folder may have a free defaults list."""

    @staticmethod
    def scheme() -> str:
        return "diffopt"

    def is_config(self, config_path: str) -> bool:
        """Not ``.yml``, which Hydra would list and then not find; what is not read is noted, see unread.py."""
        if config_path.endswith(".yml") or not super().is_config(config_path):
            return False
        return not self._leads_out(self._normalize_file_name(config_path))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return [] if self._leads_out(config_path) else super().list(config_path, results_filter)

    def _leads_out(self, name: str) -> bool:
        return self.provider == STRANGERS and leads_out(Path(self.path), name)

    def load_config(self, config_path: str) -> ConfigResult:
        name = self._normalize_file_name(config_path)
        path = Path(self.path) / name
        if not path.is_file():
            raise ConfigLoadError(f"Config not found: {path}")
        data = read_option_file(path, name)
        package = "_global_" if name.startswith("recipe/") else None
        return ConfigResult(
            config=OmegaConf.create(data), path=self.full_path(), provider=self.provider, header={"package": package}
        )


class StructuredConfigSource(ConfigSource):
    """Nothing, in the place where Hydra insists on its ConfigStore, by this name of the class.

    The store is one for the whole process: what an application keeps there, such as a ``config`` or a ``model/tiny`` of
    its own, would be merged into diffopt's of the same name, and be listed among the options.
    """

    @staticmethod
    def scheme() -> str:
        return "diffopt-nothing"

    def load_config(self, config_path: str) -> ConfigResult:
        raise ConfigLoadError(f"Config not found: {config_path}")

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return False

    def is_config(self, config_path: str) -> bool:
        return False

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []


def leads_out(folder: Path, name: str) -> bool:
    """Whether a file or a group of a config folder is a link to where the folder may name no files, see consent.py."""
    return not any(is_inside_recipe_folder(folder / name, base) for base in (folder, folder.parent))


def read_option_file(path: Path, name: str) -> dict[str, Any]:
    """The checked content of one YAML file as plain data. ``name`` is its path below the config folder.

    Raises UsageError when the file is not a mapping of data, or tries to be more than that.
    """
    status = path.stat()
    return _read(str(path), name, (status.st_mtime_ns, status.st_size))


@cache
def _read(path: str, name: str, _version: tuple[int, int]) -> dict[str, Any]:
    data, text = plain_yaml.read_plain_yaml(Path(path))
    problems = [*_header_problems(text, name), *_data_problems(data), *_defaults_problems(data, name)]
    problems += _overlay_problems(data, name)
    if problems:
        raise UsageError(f"{path} is refused, nothing in it was executed: {'; '.join(problems)}.")
    return data


def _header_problems(text: str, name: str) -> Iterator[str]:
    for package in re.findall(r"^\s*#\s*@\s*package\b:?\s*(\S*)", text, flags=re.MULTILINE | re.IGNORECASE):
        if package == "_global_" and name.startswith("recipe/"):
            continue
        if package == "_global_":
            yield "'# @package _global_' is for recipes (conf/recipe/) only, remove the line"
        else:
            yield f"'# @package {package}' is not allowed, remove the line: an option always lies in its own group"


def _data_problems(value: Any, where: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            place = f"{where}.{key}" if where else str(key)
            if key == "hydra" or str(key).startswith("hydra."):
                yield f"'{place}' configures Hydra itself; configs here hold only diffopt's own data"
            elif key == "_target_" or "()" in str(key) or str(key).startswith("_"):
                yield f"'{place}' names code; an option chooses a registered step by its 'kind' instead"
            else:
                yield from _data_problems(inner, place)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _data_problems(inner, f"{where}[{index}]")
    elif isinstance(value, str) and "${" in value:
        yield f"'{where}: {value}' is an interpolation; write the value itself"
    elif value == "???":
        yield f"'{where}' is ???, which Hydra takes for 'not set'; write the value"


def _defaults_problems(data: dict[str, Any], name: str) -> Iterator[str]:
    """A defaults list may hold ``_self_``, a sibling, and in recipes ``override /group: option``."""
    if name == "config.yaml" or "defaults" not in data:
        return
    entries = data["defaults"]
    if not isinstance(entries, list):
        yield "'defaults' must be a list"
        return
    for entry in entries:
        if isinstance(entry, str) and re.fullmatch(OPTION, entry):
            continue
        override = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else ("", None)
        recipe = name.startswith("recipe/")
        group = str(override[0]).removeprefix("override /")
        chooses = group != override[0] and group in OVERLAID and isinstance(override[1], str)
        if recipe and chooses and re.fullmatch(OPTION, str(override[1])):
            continue
        yield (
            f"defaults entry {entry!r} is not allowed; write _self_, the name of a sibling"
            + (", or 'override /group: option'" if recipe else "")
            + " (quote an option named like a YAML word)"
        )


def _overlay_problems(data: dict[str, Any], name: str) -> Iterator[str]:
    """A value of an optimization group in an overlay would leak past the user's own choice on the command line."""
    if name.startswith("recipe/"):
        for key in sorted(set(data) - OVERLAY_KEYS):
            yield (
                f"a recipe only chooses options and workload values, but sets '{key}'; make the changed setting an "
                f"option of its own, conf/{key}/NAME.yaml that extends its sibling, and choose it with "
                f"'override /{key}: NAME'"
            )
