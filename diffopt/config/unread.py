"""What lies in a config folder of the user's and is never read, such as the options of a misspelt group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from diffopt.schema.words import did_you_mean


def unread_files(folder: Path, groups: Sequence[str]) -> list[tuple[Path, str]]:
    """Files and folders of YAML that nobody reads, each with the reason.

    A folder without any group of diffopt's may be another program's: there only a near miss is one.
    """
    entries = sorted(folder.iterdir())
    ours = any(entry.name in groups and entry.is_dir() for entry in entries)
    found: list[tuple[Path, str]] = []
    for entry in entries:
        if entry.is_dir() and entry.name in groups:
            found += _unread_in_group(entry)
        elif entry.is_dir() and next(entry.glob("**/*.y*ml"), None) is not None:
            near = did_you_mean(entry.name, groups)
            found += [(entry, f"there is no group '{entry.name}'.{near}")] if near or ours else []
        elif ours and entry.suffix in (".yaml", ".yml"):
            found.append((entry, "an option lies in the folder of its group."))
    return found


def _unread_in_group(group: Path) -> Iterator[tuple[Path, str]]:
    for entry in sorted(group.iterdir()):
        if entry.suffix == ".yml":
            yield entry, f"the file of an option ends in .yaml: {entry.stem}.yaml"
        elif entry.is_dir() and next(entry.glob("**/*.y*ml"), None) is not None:
            yield entry, f"options lie right in the folder of their group, {group.name}/."


def note_on_unread_files(folder: Path, unread: Sequence[tuple[Path, str]]) -> str:
    """All of a folder in one note, without the way to it."""
    said = "; ".join(f"{path.relative_to(folder)}: {reason.rstrip('.')}" for path, reason in unread)
    return f"config folder {folder.name}: not read are {said}"
