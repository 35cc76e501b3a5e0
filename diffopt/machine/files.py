"""Files that appear whole: by a temporary file, fsync and rename."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader, or a crash at any moment, sees the old file or the new one, never a part.

    Raises ValueError for NaN and infinity, which are not JSON.
    """
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """:func:`write_json` for text."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(partial, "x", encoding="utf-8") as file:  # "x": the mode follows the umask, unlike mkstemp's
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
