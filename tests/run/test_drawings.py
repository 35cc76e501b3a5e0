"""Pictures that cells are compared with are drawn once per study, whoever asks first; without them a row says why."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from support.processes import launch, use_stub
from support.rows import a_cell

from diffopt.config.resolve import cell_from_config
from diffopt.machine.environment import detect_environment
from diffopt.recipe.cell import Cell
from diffopt.recipe.quality import comparisons_of_cell, drawing_id
from diffopt.results.drawing import AskedComparisons
from diffopt.results.result import Result
from diffopt.results.study import Study
from diffopt.run.drawings import Drawings
from diffopt.run.events import CellFinished, DrawingStarted, Event, silent_listener
from diffopt.run.process import Stop, Verdict
from diffopt.run.sweep import run_all


@pytest.fixture(autouse=True)
def _stubs_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    use_stub(monkeypatch)


def compared(*words: str, mode: str = "draws") -> Cell:
    data = a_cell("quality=fast", *words).model_dump(mode="json")
    data["workload"]["negative_prompt"] = mode
    return cell_from_config(data)


def swept(*cells: Cell) -> tuple[list[Result], list[Event]]:
    events: list[Event] = []
    return run_all(cells, "s", launch(), events.append, deep=False), events


def drawn() -> list[str]:
    """Ids of what workers drew in this study, in their order."""
    path = Path("studies/s/drawn")
    return path.read_text().split() if path.exists() else []


def test_cells_of_a_study_share_a_reference_and_its_floors() -> None:
    cells = [compared(), compared("fuse=qkv"), compared("precision=bf16"), compared("precision=bf16", "fuse=qkv")]
    rows, events = swept(*cells)
    asked = comparisons_of_cell(cells[2])
    reference = drawing_id(asked.reference.cell)
    assert drawn() == [reference, *(drawing_id(plan.cell) for plan in asked.floors.values())]
    assert [event.label for event in events if isinstance(event, DrawingStarted)] == [
        "reference",
        "attention",
        "precision",
    ]
    for row in rows:
        assert row.quality is not None
        assert row.quality.reference == reference
    assert [len(row.quality.floors) for row in rows if row.quality] == [1, 1, 2, 2]
    swept(*cells, compared("fuse=qkv", "layout=channels_last"))
    assert len(drawn()) == 3  # the study has them


def test_nothing_is_drawn_for_cells_that_are_not_compared_or_not_run() -> None:
    swept(compared("quality=none", mode="ok"), compared("quant=fp8_dynamic"))
    assert drawn() == []


def test_four_that_ask_at_once_draw_once() -> None:
    cell, where, found = compared("precision=bf16"), detect_environment("cpu"), []

    def ask() -> None:
        drawings = Drawings(Study.create("s"), launch(), Stop(), {}, silent_listener)
        found.append(drawings.comparisons(cell, where, None))

    Study.create("s")
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn()) == len(set(drawn())) == 3
    assert all(isinstance(each, AskedComparisons) and each == found[0] for each in found)


def test_without_a_reference_cells_are_measured_and_say_why_nothing_was_compared() -> None:
    cells = [compared(mode="draws_no_reference"), compared("fuse=qkv", mode="draws_no_reference")]
    rows, _ = swept(*cells)
    assert len(drawn()) == 1  # which nobody tries twice
    for row in rows:
        assert (row.status, row.valid) == ("ok", True)
        assert row.quality is not None
        assert (row.quality.reference, row.quality.reason) == (None, "no reference: oom at load: too large")


def test_a_drawing_that_cannot_be_read_is_drawn_anew() -> None:
    swept(compared())
    for path in Path("studies/s/drawings").glob("*/*/drawing.json"):
        path.write_text("{")
    swept(compared("fuse=qkv"))
    assert len(drawn()) == 4


@pytest.mark.parametrize("spoil", ["0.png", "latents.safetensors"])
def test_a_drawing_that_has_lost_a_file_is_drawn_anew(spoil: str) -> None:
    swept(compared())
    for path in Path("studies/s/drawings").glob(f"*/*/quality/{spoil}"):
        path.unlink()
    swept(compared("fuse=qkv"))
    assert len(drawn()) == 4


def test_names_of_other_files_than_its_own_make_a_drawing_none() -> None:
    swept(compared())
    for path in Path("studies/s/drawings").glob("*/*/drawing.json"):
        path.write_text(path.read_text().replace('"0.png"', '"../../../../0.png"'))
    swept(compared("fuse=qkv"))
    assert len(drawn()) == 4


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("hangs_while_comparing", "the pictures were not compared: more than 0.4 s in phase quality"),
        ("dies_while_comparing", "the process ended before the pictures were compared"),
    ],
)
def test_what_was_measured_counts_whatever_becomes_of_the_pictures(mode: str, why: str) -> None:
    events: list[Event] = []
    for _ in range(2):  # and the next run tries again
        (row,) = run_all([compared(mode=mode)], "s", launch(quality=0.4), events.append, deep=False)
        assert (row.status, row.valid) == ("ok", True)
        assert row.quality is not None
        assert (row.quality.reason or "").startswith(why)
    assert [event.kept for event in events if isinstance(event, CellFinished)] == [False, False]


def test_drawings_that_cannot_be_kept_cost_no_figure() -> None:
    Study.create("s")
    Path("studies/s/drawings").write_text("")
    (row,), _ = swept(compared())
    assert row.status == "ok"
    assert row.quality is not None
    assert "no reference: error at quality: its pictures cannot be kept in the study" in (row.quality.reason or "")


def test_a_sweep_that_is_to_end_draws_nothing_more() -> None:
    stop = Stop()
    drawings = Drawings(Study.create("s"), launch(), stop, {}, silent_listener)
    stop(15)
    found = drawings.comparisons(compared(), detect_environment("cpu"), None)
    assert isinstance(found, Verdict)
    assert found.status == "interrupted"
    assert not list(Path("studies/s/drawings").glob("*/*/drawing.json"))


def test_a_kept_row_is_judged_by_what_is_accepted_now() -> None:
    (row,), _ = swept(compared())
    assert not row.rejected
    (kept,), events = swept(compared("quality.require=high"))
    assert [event.kept for event in events if isinstance(event, CellFinished)] == [True]
    assert kept.rejected  # the stand-in has no verdict
