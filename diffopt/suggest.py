"""The near miss of a misspelled word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """``" Did you mean x?"``, or nothing when no choice is near (``4090`` is near ``rtx4090``)."""
    options = list(choices)
    low = word.lower()
    near = difflib.get_close_matches(low, options, n=1, cutoff=0.6) or [c for c in options if low and low in c][:1]
    return f" Did you mean {near[0]}?" if near else ""
