"""Paths that users write."""

from __future__ import annotations

from pathlib import Path

from diffopt.errors import UsageError


def user_path(text: str | Path, key: str) -> Path:
    """``text`` as a path, ``~`` expanded; relative ones stay relative to the working directory.

    Raises UsageError, naming ``key``, for what no file can be called (too long, a NUL, an unknown ``~user``).
    """
    try:
        path = Path(text).expanduser()
        path.lstat()  # asks the system, which refuses what cannot be a name
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RuntimeError) as error:
        shown = str(text) if len(str(text)) <= 60 else f"{str(text)[:57]}..."
        raise UsageError(f"{key}={shown!r} cannot be a path: {getattr(error, 'strerror', None) or error}.") from error
    return path
