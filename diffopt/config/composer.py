"""Command-line overrides to plain data, by Hydra's own composition and nothing else of Hydra.

No ``@hydra.main``, no ``GlobalHydra``, no plugins, no ``hydra`` node in the config: nothing that a YAML file could
steer, nothing that leaks into somebody else's Hydra application.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.defaults_list import create_defaults_list
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffopt.config import complaints
from diffopt.config.composed import Composed, KnownOptions, onto_recipe_file, stands_alone
from diffopt.config.meant import with_models_as_options
from diffopt.config.origins import Origin, Origins, note_origin, origin_of_option
from diffopt.config.source import STRANGERS, DataSource, StructuredConfigSource, leads_out, read_option_file
from diffopt.config.unread import note_on_unread_files, unread_files
from diffopt.errors import UsageError
from diffopt.machine.paths import shipped_conf
from diffopt.recipe.options import merged_option, option_names, own_values_of_option

PRIMARY = "config"


class Composer:
    """Composes configs from the shipped ``conf/`` and, beside it, the user's own folders.

    Args:
        folders: config folders, of whomever; those that do not exist are left out by the caller.
        trusted: config folders of the user's own, which may name code and any file; searched before the others.
    """

    def __init__(self, folders: Sequence[Path] = (), *, trusted: Sequence[Path] = ()) -> None:
        self._base: Composed | None = None
        for source in (DataSource, StructuredConfigSource):
            SourcesRegistry.instance().register(source)
        own = shipped_conf().resolve()
        given = {folder.resolve(): folder for folder in (*folders, *trusted) if folder.resolve() != own}
        self._trusted = {folder.resolve() for folder in trusted}
        self._given = dict(sorted(given.items(), key=lambda pair: pair[0] not in self._trusted))
        self.folders = (shipped_conf(), *self._given)
        path = ConfigSearchPathImpl()
        for index, folder in enumerate(self.folders):
            provider = "main" if not index else "user" if folder in self._trusted else STRANGERS
            path.append(provider, f"{DataSource.scheme()}://{folder}")
        path.append("schema", f"{StructuredConfigSource.scheme()}://")  # Hydra insists on one, last
        self._loader = ConfigLoaderImpl(config_search_path=path)
        self._parser = OverridesParser.create(config_loader=self._loader)
        self._parse = lru_cache(maxsize=1024)(self._parse_one)  # the points of a sweep share their words
        self._skeletons: dict[tuple[str, ...], Composed] = {}
        self._known = KnownOptions()
        repository = self._loader.repository
        names = sorted(path.name for path in shipped_conf().iterdir() if path.is_dir())
        self._options = {name: repository.get_group_options(name, ObjectType.CONFIG) for name in names}
        self._unread = {
            given: unread_files(given, names, partial(self._is_read, real)) for real, given in self._given.items()
        }

    @property
    def base(self) -> Composed | None:
        """The recipe file's data, where there is one."""
        return self._base

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self._options)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user's folders have that is not read."""
        return tuple(note_on_unread_files(folder, files) for folder, files in self._unread.items() if files)

    def options(self, group: str) -> list[str]:
        """Names of the options of a group, the user's among them."""
        return self._options[group]

    def option_file(self, group: str, option: str) -> Path:
        """The YAML file of an option. Raises UsageError when two folders have one of that name."""
        name = f"{group}/{option}.yaml"
        found = [folder / name for folder in self.folders if self._has(folder, name)]
        if len(found) > 1 and found[0].read_bytes() != found[1].read_bytes():  # a checkout's own conf/ is no clash
            raise UsageError(
                f"{found[1]} has the name of another option, {found[0]}. Give yours a name of its own "
                f"(`defaults: [{option}, _self_]` in it extends the other)."
            )
        if not found:
            raise UsageError(self._unknown(group, option))
        return found[0]

    def _has(self, folder: Path, name: str) -> bool:
        """Whether a folder has a file of that name that is read."""
        return (folder / name).is_file() and self._is_read(folder, name)

    def _is_read(self, folder: Path, name: str) -> bool:
        """Whether what has that name in a folder may be read: in a stranger's that is no link that leads out."""
        return folder not in self._given or folder in self._trusted or not leads_out(folder, name)

    def _unknown(self, group: str, option: str) -> str:
        """That there is no such option, and the file that may be meant to be one."""
        said = complaints.unknown_option(group, option, self.options(group))
        for path, reason in (pair for files in self._unread.values() for pair in files):
            meant = [path] if path.is_file() or path.is_symlink() else sorted(path.glob("**/*.y*ml"))
            if file := next((file for file in meant if file.stem == option), None):
                said += f" {file} is not read: {reason.rstrip('.')}."
        return said

    def own_file(self, group: str, option: str) -> Path | None:
        """The file of an option of the user's own; None for a shipped one."""
        name = f"{group}/{option}.yaml"
        return next((folder / name for folder in self.folders[1:] if self._has(folder, name)), None)

    def origin(self, group: str, option: str) -> Origin | None:
        """Where the file of an option comes from; None for a shipped one."""
        return self._origin(f"{group}/{option}.yaml")

    def _origin(self, name: str) -> Origin | None:
        """Of the folders that have a file of that name, Hydra reads the first one's; and so does this."""
        folder = next((folder for folder in self.folders if self._has(folder, name)), None)
        if folder is None or folder not in self._given:
            return None
        return origin_of_option(self._given[folder], name, trusted=folder in self._trusted)

    def read_option(self, group: str, option: str) -> dict[str, Any]:
        """The checked data of one option's file as it stands, siblings not merged. UsageError when there is no such."""
        path, others = self.option_file(group, option), [name for name in self.options(group) if name != option]
        data = read_option_file(path, f"{group}/{option}.yaml")
        for name in data.get("defaults", []):
            if isinstance(name, str) and name not in ("_self_", option, *others):
                raise UsageError(complaints.unknown_sibling(path, group, name, others))
        return copy.deepcopy(data)

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Parse and check what can be checked before composing: groups, options, quoting."""
        return [self._parse(text) for text in overrides]

    def _parse_one(self, text: str) -> Override:
        try:
            (override,) = self._parser.parse_overrides([text])
        except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
            raise UsageError(complaints.unparsable_override(text, str(error))) from error
        complaint = complaints.complaint_about_override(override, self.groups, self.options, self._unknown)
        if complaint:
            raise UsageError(complaint)
        return override

    def expand(self, overrides: Sequence[str]) -> list[list[str]]:
        """The points of a sweep as lists of overrides: Hydra's own expansion of ``a,b``, choice, range and glob."""
        parsed = self.parse(overrides)
        for override in parsed:
            if override.is_sweep_override() and not _values(override):
                raise UsageError(f"{override.input_line} gives '{override.get_key_element()}' no value at all.")
        (points,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        return points

    def compose(self, typed: Sequence[str], given: Sequence[str] = (), origin: Origin | None = None) -> Composed:
        """Compose one config. Raises UsageError for every mistake in the overrides or in a YAML file.

        Args:
            typed: overrides of the command line.
            given: overrides of a matrix, which those of the command line beat.
            origin: where the matrix comes from.
        """
        given, typed = (with_models_as_options(words, self.options("model")) for words in (given, typed))
        parsed = self.parse([*given, *typed])
        try:
            self._loader.validate_sweep_overrides_legal(parsed, run_mode=RunMode.RUN, from_shell=True)
        except ConfigCompositionException as error:
            raise UsageError(complaints.ambiguous_override(str(error), parsed)) from error
        skeleton = self._skeleton([override for override in parsed if override.key_or_group in self.groups])
        data, origins = copy.deepcopy(skeleton.data), dict(skeleton.origins)
        for index, override in enumerate(parsed):
            if override.key_or_group not in self.groups:
                if having := self._others_with(override.key_or_group, data):
                    group = override.key_or_group.split(".")[0]
                    raise UsageError(complaints.key_of_other_options(override, group, skeleton.choices[group], having))
                _set(data, override)
                note_origin(origins, override.key_or_group, override.value(), origin if index < len(given) else None)
        keys = frozenset(str(override.key_or_group) for override in parsed)
        choices = dict(skeleton.choices)
        return replace(skeleton, data=data, choices=choices, typed=keys, origins=origins)

    def _others_with(self, key: str, data: Mapping[str, Any]) -> list[str]:
        """Options of a group of steps that bring a dotted key along, where the chosen one has none."""
        group, _, rest = key.partition(".")
        leaf, step = rest.partition(".")[0], data.get(group)
        if not isinstance(step, dict) or "kind" not in step or leaf in step:
            return []
        return [option for option in option_names(group) if leaf in own_values_of_option(group, option)]

    def onto(self, base: Composed) -> Composer:
        """The same options on top of a recipe file's data: what the overrides do not name is the file's."""
        other = copy.copy(self)
        other._base, other._skeletons = base, {}
        return other

    def without_file(self) -> Composer:
        """The same options, without a recipe file."""
        other = copy.copy(self)
        other._base, other._skeletons = None, {}
        return other

    def _skeleton(self, groups: list[Override]) -> Composed:
        """The data for a choice of options, before values are set: composed once per choice, a sweep reuses it."""
        key = tuple(str(override.input_line) for override in groups)
        if key not in self._skeletons:
            found = self._composed(groups)
            for group, option in found.choices.items():
                self.option_file(group, option)
            self._skeletons[key] = found if self._base is None else onto_recipe_file(self._base, found, groups)
        return self._skeletons[key]

    def _composed(self, groups: list[Override]) -> Composed:
        """What is known already, of shipped options what their files say; the rest by Hydra."""
        if not all(self._is_shipped(override) for override in groups):
            if (known := self._known.find(groups)) is not None:
                return known
            self._known.keep(groups, found := self._composed_by_hydra(groups))
            return found
        for override in filter(stands_alone, groups):
            self._known.keep_alone(str(override.key_or_group), str(override.value()), self._read_shipped)
        if (known := self._known.find(groups)) is not None:
            return known
        others = [override for override in groups if not stands_alone(override)]
        self._known.keep(others, self._composed_by_hydra(others))
        return self._composed(groups)

    def _is_shipped(self, override: Override) -> bool:
        """Whether it chooses an option of diffopt's own, with no file of that name beside it."""
        group, option = str(override.key_or_group), str(override.value())
        return option in self.options(group) and self.own_file(group, option) is None

    def _read_shipped(self, group: str, option: str) -> dict[str, Any]:
        def read(name: str) -> dict[str, Any]:
            return copy.deepcopy(read_option_file(shipped_conf() / group / f"{name}.yaml", f"{group}/{name}.yaml"))

        return merged_option(read, option)

    def _composed_by_hydra(self, groups: list[Override]) -> Composed:
        try:
            repository = CachingConfigRepository(self._loader.repository)
            defaults = create_defaults_list(repository, PRIMARY, groups, prepend_hydra=False, skip_missing=False)
            config = self._loader._compose_config_from_defaults_list(defaults.defaults, repository)
        except MissingConfigException as error:
            raise UsageError(self._missing(error)) from error
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise UsageError(complaints.hydra_composition_failure(str(error))) from error
        except RecursionError:
            raise UsageError("These options extend each other in a circle (their defaults lists).") from None
        data = {str(name): value for name, value in _container(config).items()}
        choices = {group: str(option) for group, option in defaults.overrides.known_choices.items()}
        chosen = frozenset(defaults.overrides.override_choices)
        return Composed(data, choices, chosen=chosen, origins=self._origins(defaults.defaults))

    def _missing(self, error: MissingConfigException) -> str:
        """Which option there is not. Raises UsageError itself where the file of another option extends it."""
        if extending := re.match(r"In '(\w+)/(.+?)'", str(error)):
            self.read_option(*extending.groups())
        group, _, option = str(error.missing_cfg_file).partition("/")
        return self._unknown(group, option)

    def _origins(self, merged: Sequence[ResultDefault]) -> Origins:
        """Where each value comes from, of files that are merged in this order."""
        origins: Origins = {}
        for entry in merged:
            name = f"{entry.config_path}.yaml"
            origin = self._origin(name)
            if origin is not None or origins:
                folder = next(folder for folder in self.folders if self._has(folder, name))
                note_origin(origins, entry.package or "", read_option_file(folder / name, name), origin)
        return origins


def _values(override: Override) -> list[str]:
    """What a sweep over this override runs through. Raises UsageError for one that cannot be enumerated."""
    try:
        return list(override.sweep_string_iterator())
    except (HydraException, ValueError) as error:
        raise UsageError(f"{override.input_line} cannot be swept: {' '.join(str(error).split())}.") from error


def _set(data: dict[str, Any], override: Override) -> None:
    """Set one value: its key must be there; a mapping is merged into the one that is."""
    *parents, leaf = override.key_or_group.split(".")
    node: Any = data
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or leaf not in node:
        raise UsageError(complaints.unknown_key(override, data))
    value = override.value()
    if isinstance(value, dict) and isinstance(node[leaf], dict):
        if unknown := sorted(str(key) for key in value if key not in node[leaf]):
            raise UsageError(complaints.unknown_key(override, data, below=unknown[0]))
        value = {**node[leaf], **value}
    node[leaf] = value


def _container(config: Any) -> dict[Any, Any]:
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return plain
