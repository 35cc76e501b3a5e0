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

from diffopt.errors import UsageError
from diffopt.labels import text
from diffopt.named_files import Place, places
from diffopt.origins import Origin, origin_of
from diffopt.paths import user_path
from diffopt.steps.hub_kernels import shipped_repositories
from diffopt.words import word

if TYPE_CHECKING:
    from diffopt.cell import Cell
    from diffopt.compose import Composed

INTERPRETER = "runtime.python"
ARTIFACT = ("launch.compile_artifact.load", "launch.compile_artifact.sha256")
FILES = frozenset({"model", "lora", "workload"})  # sections that name files


def consented(composed: Composed) -> dict[str, Any]:
    """The composed data, with the paths that a file names counted from where that file says.

    Raises UsageError for whatever a file names without consent.
    """
    if not composed.origins:
        return composed.data
    data = located(composed, FILES)
    _check_study(composed)
    _check(composed, [INTERPRETER], "a program that diffopt would start")
    _check(composed, ARTIFACT, "compiled code that diffopt would load")
    _check(composed, kernel_keys(data.get("attention")), "code that diffopt would download from the hub and run")
    for key in (INTERPRETER, ARTIFACT[0]):
        holder, leaf = _holder(data, key)
        origin = origin_of(composed.origins, key)
        if origin is not None and isinstance(path := holder.get(leaf), str) and "/" in path:
            holder[leaf] = os.path.join(origin.base, user_path(path, key))  # links stay: a venv's python is one
    return data


def located(composed: Composed, sections: frozenset[str]) -> dict[str, Any]:
    """The composed data with every file that ``sections`` name looked up. Raises UsageError for one out of bounds."""
    data = copy.deepcopy(composed.data)
    for place in places({name: data.get(name) for name in sections}):
        if (origin := origin_of(composed.origins, place.typed)) is not None:
            place.holder[place.key] = _file(place, origin, composed.choices)
    return data


def kernel_keys(attention: Any) -> list[str]:
    """Keys of a hub kernel that somebody has to stand for: what is run, unless diffopt's own options name it.

    The commit is among them: on the hub, anybody can put a commit of theirs into a repository's proposals.
    """
    hub = attention.get("hub") if isinstance(attention, Mapping) else None
    if not isinstance(hub, Mapping):
        return []
    keys = [] if hub.get("repository") in shipped_repositories() else ["repository"]
    if hub.get("trust_remote_code") not in (None, False):
        keys += ["revision", "trust_remote_code"]
    return [f"attention.hub.{key}" for key in keys]


def to_type(cell: Cell, choices: Mapping[str, str], sections: Mapping[str, Any]) -> list[str]:
    """The words that a reader of this cell's recipe file adds to the command.

    Args:
        sections: the recipe and the workload as the file has them; what is absolute there may lie anywhere.
    """
    data = {**sections, "runtime": cell.runtime.model_dump()}
    keys = [INTERPRETER, *kernel_keys(sections["attention"])]
    values = [(key, holder.get(leaf)) for key in keys for holder, leaf in [_holder(data, key)]]
    words = [word(key, value) for key, value in values if value is not None]
    return words + _unique(_typed(p, choices) for p in places(sections) if os.path.isabs(p.path))


def _check(composed: Composed, keys: Sequence[str], what: str) -> None:
    """Raises UsageError where a file that is not trusted sets one of ``keys``; null names nothing."""
    named: list[tuple[str, Any, Origin]] = []
    for key in keys:
        holder, leaf = _holder(composed.data, key)
        origin = origin_of(composed.origins, key)
        if holder.get(leaf) is not None and origin is not None and not origin.trusted:
            named.append((key, holder[leaf], origin))
    if not named:
        return
    origin = named[0][2]
    said = ", ".join(f"{key}={text(value)}" for key, value, _ in named)
    words = [word(key, value if isinstance(value, str | bool) else text(value)) for key, value, _ in named]
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
        f"{_allow(origin, [word('study', study)])}"
    )


def _file(place: Place, origin: Origin, choices: Mapping[str, str]) -> str:
    """The absolute path of a file that ``origin`` names."""
    path = user_path(origin.base / user_path(place.path, place.typed), place.typed)
    if origin.trusted:
        return str(path)
    said = f"{_shown(origin.file)} names {place.typed}={place.path}"
    allow = _allow(origin, [_typed(place, choices)])
    if not inside(path, origin.base):
        raise UsageError(
            f"{said}, which was not opened: a recipe file or a config folder may name files below {origin.base} alone, "
            f"none of them hidden. {allow}"
        )
    if not path.exists():
        raise UsageError(f"{said}: there is no such file in {origin.base}, where it counts from. {allow}")
    if path.is_dir() and (out := [link for link in path.rglob("*") if link.is_symlink() and not inside(link, path)]):
        raise UsageError(f"{said}, in which {out[0].relative_to(path)} is a link that leads out of it. {allow}")
    return str(path.resolve())


def inside(path: Path, base: Path) -> bool:
    """Whether a path lies below ``base`` after all links, with no name on the way that begins with a dot."""
    try:
        parts = path.resolve().relative_to(base.resolve()).parts
    except (ValueError, OSError, RuntimeError):  # elsewhere; links in a circle
        return False
    return not any(part.startswith(".") for part in parts)


def _typed(place: Place, choices: Mapping[str, str]) -> str:
    """What names the file on the command line; a later stage's folder goes with its model's option."""
    if place.typed == "model.cascade":
        return word("model", choices.get("model", "NAME"))
    return word(place.typed, place.path)


def _allow(origin: Origin, words: Iterable[str]) -> str:
    allowed = f"To allow it, add to the command: {' '.join(_unique(words))}"
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


def _holder(data: Mapping[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The mapping that has the last part of a dotted key, empty where there is none; and that part."""
    *parents, leaf = key.split(".")
    node: Any = data
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
    return (node if isinstance(node, dict) else {}), leaf


def _unique(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))
