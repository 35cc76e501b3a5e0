"""docs/coverage.md is what its data say, and the data name overrides and tests that exist."""

from __future__ import annotations

import pytest
from support.places import REPO
from support.rows import a_cell, a_result

from scripts.maintain.coverage import GPU, Entry, committed, page, plans, read

SECTIONS = read(REPO / "docs/coverage.yaml")
ENTRIES = [entry for entries in SECTIONS.values() for entry in entries]


@pytest.mark.slow
def test_the_page_is_up_to_date() -> None:
    assert (REPO / "docs/coverage.md").read_text(encoding="utf-8") == page(SECTIONS, list(committed(REPO)))


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.technique for entry in ENTRIES])
def test_an_entry_can_be_selected_somewhere_and_has_its_test(entry: Entry) -> None:
    file, _, name = entry.test.partition("::")
    assert f"\ndef {name}(" in (REPO / file).read_text(encoding="utf-8"), f"there is no test {entry.test}"
    assert None in [plans(entry, place) for place in ("cpu", GPU)], plans(entry, GPU)


def test_a_row_shows_what_has_its_options_and_its_values() -> None:
    words = ("compile=default", "compile.components=[denoiser,text_encoders]", "compile.backend=eager")
    cell = a_cell(*words)
    row = a_result(cell, choices={"compile": "default", "quant": "none"})

    def shown(*overrides: str, measurable: bool = True) -> bool:
        entry = Entry("t", overrides, "tests/x.py::y", measurable)
        return "[measured](there)" in page({"s": [entry]}, [("there", row)])

    assert shown("compile=default")
    assert shown("compile=default", "compile.components=[denoiser,text_encoders]", "quant=none")
    assert shown("workload.batch_size=1")
    assert not shown("compile=default", "compile.components=[denoiser]")
    assert not shown("compile=default", measurable=False)
    assert not shown("quant=int8_weight")
    assert not shown("workload.batch_size=2")
    assert not shown("launch.compile_artifact.save=true")
