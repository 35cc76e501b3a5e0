"""Small answers that took long to find, kept as JSON in the user's cache folder.

They are disposable: where the place cannot be read or written, they are found again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffopt.errors import UsageError
from diffopt.machine.files import write_json
from diffopt.machine.paths import user_cache
from diffopt.machine.reading import MIB, read_file

LONGEST = 64 * MIB  # of a file of answers


def remembered_file(name: str) -> Path | None:
    """Where the answers of that name lie; None for a user without a home."""
    try:
        return user_cache() / name
    except RuntimeError:
        return None


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
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, known)
    except (OSError, ValueError):
        return
