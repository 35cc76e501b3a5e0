"""Texts send nobody to figures that no report has."""

from __future__ import annotations

import pytest
from support.places import REPO
from support.rows import a_result

from diffopt.results.table import values_table

TEXTS = [
    *(REPO / "conf").rglob("*.yaml"),
    *(REPO / "diffopt").rglob("*.py"),
    *REPO.glob("*.md"),
    *(REPO / "docs").glob("*.md"),
]


@pytest.mark.parametrize(("promise", "column"), [("quality figures", "psnr"), ("share of its peak", "peak_share")])
def test_a_figure_that_is_promised_is_in_the_table(promise: str, column: str) -> None:
    if column in values_table([a_result()]).csv().splitlines()[0]:
        return
    made = [str(path.relative_to(REPO)) for path in TEXTS if promise in " ".join(path.read_text("utf-8").split())]
    assert made == []
