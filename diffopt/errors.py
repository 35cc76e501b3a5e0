"""The exceptions of diffopt, all of them:

DiffoptError
├── UsageError   a mistake of the user's: one paragraph that says what, where and what instead; exit code 2
├── Refusal      this cell cannot run here, known before or while it is built; the row is ``refused``
├── NoEffect     a step left no trace on the pipeline; the cell fails with the step's name
└── Interrupted  a signal ended a sweep
"""

from __future__ import annotations

__all__ = ["DiffoptError", "Interrupted", "NoEffect", "Refusal", "UsageError"]


class DiffoptError(Exception):
    """Base of everything that diffopt raises on purpose; its text is meant for the user."""


class UsageError(DiffoptError):
    """The command, a config or a file is wrong."""


class Refusal(DiffoptError):
    """The cell is well formed, but cannot work on this machine or with this pipeline."""


class NoEffect(DiffoptError):
    """A step's ``verify`` found that nothing was done, or that a later step undid it."""


class Interrupted(DiffoptError):
    """A signal ended a sweep; its rows so far are kept. A command exits with ``128 + signal``, as shells do."""

    def __init__(self, signal: int, study: str) -> None:
        """``study`` is what ``study=`` takes to go on: a name, or a path."""
        super().__init__(
            f"interrupted; the rows so far are kept, and the same command with study={study} goes on from there"
        )
        self.signal = signal
