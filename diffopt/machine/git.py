"""The repository of the working directory, which may be anybody's: nothing that its settings name is started."""

from __future__ import annotations

import os
from collections.abc import Sequence

from diffopt.machine.process import lines_of_program
from diffopt.schema.record import Frozen

TIMEOUT_S = 5.0
LONGEST_LINE = 65536  # bytes; lines have paths
SAFE = (
    *("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"),
    *("-c", "safe.bareRepository=explicit"),  # one that is hidden in a folder of files is none
    "--no-optional-locks",
)
# Objects that a partial clone lacks would be fetched, by what its settings call ssh. No protocol is called "none".
NO_FETCH = {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1"}
# lines, since no setting's name has a line end
SETTINGS = ("config", "--show-scope", "--includes", "--name-only", "--list")
# the first line is of the branch: no line at all is a git that failed
CHANGES = (
    *("status", "--porcelain", "--branch", "--no-ahead-behind"),
    *("--untracked-files=no", "--ignore-submodules=all"),
)


class Git(Frozen):
    """The repository of the working directory, where recipes live; ``dirty`` counts tracked files only."""

    commit: str
    dirty: bool


def git_state() -> Git | None:
    """Commit of the working directory's repository.

    None outside of one, without git, where git is too slow, and where a filter of its own cannot be switched off.
    """
    if not (commit := _git("rev-parse", "--verify", "HEAD")):
        return None
    if not (settings := _git(*SETTINGS)):
        return None
    filters = _own_filters(settings)
    if any("=" in driver for driver in filters):  # -c would end the name there, and the filter would stay on
        return None
    off = [word for driver in filters for word in _switched_off(driver)]
    changes = _git(*CHANGES, off=off)
    return Git(commit=commit[0], dirty=len(changes) > 1) if changes else None


def _own_filters(settings: Sequence[str]) -> set[str]:
    """Filters that the repository itself sets, ``filter.NAME``: programs that git runs over changed files.

    Those of the user's or of the machine's settings are theirs.
    """
    words = [line.partition("\t") for line in settings]
    return {
        name.rpartition(".")[0]
        for scope, _, name in words
        if scope in ("local", "worktree") and name.startswith("filter.")
    }


def _switched_off(driver: str) -> tuple[str, ...]:
    return ("-c", f"{driver}.clean=", "-c", f"{driver}.process=", "-c", f"{driver}.required=false")


def _git(*args: str, off: Sequence[str] = ()) -> list[str]:
    """The lines that git prints; none where it does not end well, or in time."""
    said, _ = lines_of_program(
        ["git", *SAFE, *off, *args], os.environ | NO_FETCH, TIMEOUT_S, longest=LONGEST_LINE, whole=True
    )
    return [line.decode("utf-8", errors="replace") for line in said]
