"""docs/coverage.md is what its data say, and the data name overrides and tests that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffopt.coverage import GPU, committed, has_test, page, plans, read

ROOT = Path(__file__).parents[1]
SECTIONS = read(ROOT / "docs/coverage.yaml")
ENTRIES = [entry for entries in SECTIONS.values() for entry in entries]


@pytest.mark.slow
def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs/coverage.md").read_text(encoding="utf-8") == page(SECTIONS, list(committed(ROOT)))


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.technique for entry in ENTRIES])
def test_an_entry_can_be_selected_somewhere_and_has_its_test(entry: object) -> None:
    assert has_test(entry, ROOT), f"there is no test {entry.test}"  # type: ignore[attr-defined,arg-type]
    places = ("cpu", GPU)
    assert None in [plans(entry, place) for place in places], plans(entry, GPU)  # type: ignore[arg-type]
