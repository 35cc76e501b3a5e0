"""What only the command line may name: code that is started or loaded, and files outside of a config's own folder.

A recipe file and the options of a config folder may come from a stranger. They are data, so nothing that they say may
run a program or bring the text of a file of the user's into a row. What they name beyond that is refused here, with the
words that consent to it; ``--trust-config-dir`` consents to all that the options of one folder name.
"""

from __future__ import annotations

import copy
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffopt.config.origins import Origin, origin_of
from diffopt.errors import UsageError
from diffopt.machine.paths import user_path
from diffopt.recipe.named_files import (
    INTERPRETER,
    NamedFile,
    files_named_by_recipe,
    holder_of,
    is_inside_recipe_folder,
    kernel_keys,
    override_that_names_file,
    unique_words,
)
from diffopt.schema.words import shell_word, value_in_words

if TYPE_CHECKING:
    from diffopt.config import Composed
ARTIFACT = ("launch.compile_artifact.load", "launch.compile_artifact.sha256")
FILES = frozenset({"model", "lora", "workload", "quality"})  # sections that name files


def config_with_consent(composed: Composed) -> dict[str, Any]:
    """The composed data, with the paths that a file names counted from where that file says.

    Raises UsageError for whatever a file names without consent.
    """
    if not composed.origins:
        return composed.data
    data = config_with_files_located(composed, FILES)
    _check_study(composed)
    _check(composed, [INTERPRETER], "a program that diffopt would start")
    _check(composed, ARTIFACT, "compiled code that diffopt would load")
    _check(composed, kernel_keys(data.get("attention")), "code that diffopt would download from the hub and run")
    for key in (INTERPRETER, ARTIFACT[0]):
        holder, leaf = holder_of(data, key)
        origin = origin_of(composed.origins, key)
        if origin is not None and isinstance(path := holder.get(leaf), str) and "/" in path:
            holder[leaf] = os.path.join(origin.base, user_path(path, key))  # links stay: a venv's python is one
    return data


def config_with_files_located(composed: Composed, sections: frozenset[str]) -> dict[str, Any]:
    """The composed data with every file that ``sections`` name looked up. Raises UsageError for one out of bounds."""
    data = copy.deepcopy(composed.data)
    for place in files_named_by_recipe({name: data.get(name) for name in sections}):
        if (origin := origin_of(composed.origins, place.typed)) is not None:
            place.holder[place.key] = _file(place, origin, composed.choices)
    return data


def _check(composed: Composed, keys: Sequence[str], what: str) -> None:
    """Raises UsageError where a file that is not trusted sets one of ``keys``; null names nothing."""
    named: list[tuple[str, Any, Origin]] = []
    for key in keys:
        holder, leaf = holder_of(composed.data, key)
        origin = origin_of(composed.origins, key)
        if holder.get(leaf) is not None and origin is not None and not origin.trusted:
            named.append((key, holder[leaf], origin))
    if not named:
        return
    origin = named[0][2]
    said = ", ".join(f"{key}={value_in_words(value)}" for key, value, _ in named)
    words = [
        shell_word(key, value if isinstance(value, str | bool) else value_in_words(value)) for key, value, _ in named
    ]
    raise UsageError(
        f"{_shown(origin.file)} names {said}: {what}. Nothing of it was used, for that takes the consent of the "
        f"command line. {_allow(origin, words)}"
    )


def _check_study(composed: Composed) -> None:
    """A matrix may give results a name; where they are written beyond that is not its business."""
    study, origin = composed.data.get("study"), origin_of(composed.origins, "study")
    if origin is None or origin.trusted or not isinstance(study, str) or not ("/" in study or study.startswith("~")):
        return
    raise UsageError(
        f"{_shown(origin.file)} names study={study}: a path, and only the command line says where results are written. "
        f"{_allow(origin, [shell_word('study', study)])}"
    )


def _file(place: NamedFile, origin: Origin, choices: Mapping[str, str]) -> str:
    """The absolute path of a file that ``origin`` names."""
    path = user_path(origin.base / user_path(place.path, place.typed), place.typed)
    if origin.trusted:
        return str(path)
    said = f"{_shown(origin.file)} names {place.typed}={place.path}"
    allow = _allow(origin, [override_that_names_file(place, choices)])
    if not is_inside_recipe_folder(path, origin.base):
        raise UsageError(
            f"{said}, which was not opened: a recipe file or a config folder may name files below {origin.base} alone, "
            f"none of them hidden. {allow}"
        )
    if not path.exists():
        raise UsageError(f"{said}: there is no such file in {origin.base}, where it counts from. {allow}")
    if path.is_dir() and (
        out := [link for link in path.rglob("*") if link.is_symlink() and not is_inside_recipe_folder(link, path)]
    ):
        raise UsageError(f"{said}, in which {out[0].relative_to(path)} is a link that leads out of it. {allow}")
    return str(path.resolve())


def _allow(origin: Origin, words: Iterable[str]) -> str:
    allowed = f"To allow it, add to the command: {' '.join(unique_words(words))}"
    if origin.config_dir is None:
        return f"{allowed}."
    folder = shlex.quote(str(origin.config_dir))
    return f"{allowed}, or, if the whole folder is yours: --trust-config-dir {folder}."


def _shown(path: Path) -> str:
    """A path as one would write it here."""
    try:
        return str(Path(os.path.abspath(path)).relative_to(Path.cwd()))
    except ValueError:
        return str(path)
