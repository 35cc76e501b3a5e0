"""Small answers that took long to find, kept as JSON in the user's cache folder.

They are disposable: where the place cannot be read or written, they are found again. A place that others can write to
is refused, since what it says is believed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from diffopt.errors import UsageError
from diffopt.machine.files import make_private_folders, write_json
from diffopt.machine.own_folder import check_own_folder
from diffopt.machine.paths import user_cache
from diffopt.machine.reading import MIB, read_file

LONGEST = 64 * MIB  # of a file of answers


def remembered_file(name: str) -> Path | None:
    """Where the answers of that name lie; None for a user without a home.

    Raises Refusal where somebody else may have put them there.
    """
    try:
        folder = user_cache()
    except RuntimeError:
        return None
    if os.path.isdir(folder):  # False also where nobody may look
        check_own_folder(folder.resolve(), "XDG_CACHE_HOME", str(folder))
    return folder / name


def recall_answers(file: Path) -> dict[str, Any]:
    """What is remembered; nothing when the file is missing, unreadable, spoiled or larger than any that is written."""
    try:
        known = json.loads(read_file(file, str(file), LONGEST))
    except (OSError, UsageError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def remember_answers(file: Path, known: dict[str, Any]) -> None:
    """Replace what is remembered. A place that takes no files costs time and nothing else."""
    try:
        make_private_folders(file.parent)
        write_json(file, known)
    except (OSError, ValueError):
        return
