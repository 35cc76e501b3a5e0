"""What lies in a config folder of the user's and is never read, such as the options of a misspelt group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from diffopt.schema.words import did_you_mean

LINK = "it is a link that leads elsewhere; only a folder given by --trust-config-dir may have one."


def unread_files(folder: Path, groups: Sequence[str], is_read: Callable[[str], bool]) -> list[tuple[Path, str]]:
    """Files and folders of YAML that nobody reads, each with the reason.

    A folder without any group of diffopt's may be another program's: there only a near miss is one.

    Args:
        is_read: whether what has that name below the folder may be read.
    """
    entries = sorted(folder.iterdir())
    ours = any(entry.name in groups and entry.is_dir() for entry in entries)
    found: list[tuple[Path, str]] = []
    for entry in entries:
        if entry.is_symlink() and not is_read(entry.name):
            found += [(entry, LINK)] if entry.name in groups else []
        elif entry.is_dir() and entry.name in groups:
            found += _unread_in_group(entry, is_read)
        elif entry.is_dir() and next(entry.glob("**/*.y*ml"), None) is not None:
            near = did_you_mean(entry.name, groups)
            found += [(entry, f"there is no group '{entry.name}'.{near}")] if near or ours else []
        elif ours and entry.suffix in (".yaml", ".yml"):
            found.append((entry, "an option lies in the folder of its group."))
    return found


def _unread_in_group(group: Path, is_read: Callable[[str], bool]) -> Iterator[tuple[Path, str]]:
    for entry in sorted(group.iterdir()):
        if entry.is_symlink() and not is_read(f"{group.name}/{entry.name}"):
            yield entry, LINK
        elif entry.suffix == ".yml":
            yield entry, f"the file of an option ends in .yaml: {entry.stem}.yaml"
        elif entry.is_dir() and next(entry.glob("**/*.y*ml"), None) is not None:
            yield entry, f"options lie right in the folder of their group, {group.name}/."


def note_on_unread_files(folder: Path, unread: Sequence[tuple[Path, str]]) -> str:
    """All of a folder in one note, without the way to it."""
    said = "; ".join(f"{path.relative_to(folder)}: {reason.rstrip('.')}" for path, reason in unread)
    # a row has it, which is UTF-8: so is a name that is not
    return f"config folder {folder.name}: not read are {said}".encode(errors="backslashreplace").decode()
