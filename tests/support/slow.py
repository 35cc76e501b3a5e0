"""Which cases of a test every run has, where all of them together take long: the others are in the slow suite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def first_ones(cases: Iterable[Any], count: int) -> list[Any]:
    """The cases as parameters, all but the first ``count`` marked slow; tuples are one case each."""
    listed = list(cases)
    rest = [
        pytest.param(*case, marks=pytest.mark.slow)
        if isinstance(case, tuple)
        else pytest.param(case, marks=pytest.mark.slow)
        for case in listed[count:]
    ]
    return [*listed[:count], *rest]
