"""The repository of the working directory, which may be anybody's: nothing that its settings name is started."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from diffopt.schema.record import Frozen

TIMEOUT_S = 5.0
SAFE = (
    *("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"),
    *("-c", "safe.bareRepository=explicit"),  # one that is hidden in a folder of files is none
    "--no-optional-locks",
)
# Objects that a partial clone lacks would be fetched, by what its settings call ssh. No protocol is called "none".
NO_FETCH = {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1"}


class Git(Frozen):
    """The repository of the working directory, where recipes live; ``dirty`` counts tracked files only."""

    commit: str
    dirty: bool


def git_state() -> Git | None:
    """Commit of the working directory's repository; None outside of one, without git, or where git is too slow."""
    commit = _git("rev-parse", "HEAD")
    settings = _git("config", "--show-scope", "--includes", "--name-only", "--null", "--list") if commit else None
    if commit is None or settings is None:
        return None
    off = [word for driver in _own_filters(settings) for word in _switched_off(driver)]
    changes = _git("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all", off=off)
    return None if changes is None else Git(commit=commit, dirty=bool(changes))


def _own_filters(settings: str) -> set[str]:
    """Filters that the repository itself sets, ``filter.NAME``: programs that git runs over changed files.

    Those of the user's or of the machine's settings are theirs.
    """
    words = settings.split("\0")
    local = (name for scope, name in zip(words[::2], words[1::2], strict=False) if scope in ("local", "worktree"))
    return {name.rpartition(".")[0] for name in local if name.startswith("filter.")}


def _switched_off(driver: str) -> tuple[str, ...]:
    return ("-c", f"{driver}.clean=", "-c", f"{driver}.process=", "-c", f"{driver}.required=false")


def _git(*args: str, off: Sequence[str] = ()) -> str | None:
    try:
        done = subprocess.run(
            ["git", *SAFE, *off, *args],
            env=os.environ | NO_FETCH,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
