"""Speed-ups of a study: over which row, how that row is named, and why some rows have none."""

from __future__ import annotations

from typing import Any

import pytest
from support.rows import a_cell, a_result

from diffopt.config.composer import Composer
from diffopt.config.reference import read_reference
from diffopt.errors import UsageError
from diffopt.results.result import Latency, Metrics, Result
from diffopt.results.speed_up import speed_ups
from diffopt.results.table import results_table
from diffopt.schema.reference import Reference


def row(*words: str, seconds: float | None = 1.0, **changes: Any) -> Result:
    """A row of a cell of diffopt's smallest model, as fast as asked."""
    cell = a_cell("hardware=cpu", *words)
    if seconds is not None:
        latency = Latency(samples=(seconds,) * 3, median=seconds, q1=seconds, q3=seconds)
        changes["metrics"] = Metrics(latency_s=latency)
    return a_result(cell, choices=dict(cell.choices), **changes)


PLAIN_ROW = row(seconds=4.0)
MATH = row("attention=math", seconds=2.0)
VANILLA = row("attention=vanilla", seconds=1.0)
LARGER = row("attention=math", "workload.batch_size=2", seconds=3.0)
BASELINE = row("recipe=baseline", "attention=sdpa", seconds=8.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("auto", ["2.00x", "reference", "4.00x", ""]),
        ("plain", ["2.00x", "reference", "4.00x", ""]),
        ("first", ["reference", "0.50x", "2.00x", ""]),
        ("recipe:baseline", ["2.00x", "reference", "4.00x", ""]),  # all began with it, one has nothing besides
        (f"cell:{VANILLA.cell_id}", ["0.50x", "0.25x", "reference", ""]),
        ("cell:000000000000", ["", "", "", ""]),
    ],
)
def test_the_row_that_is_named_is_compared_with(text: str, words: list[str]) -> None:
    rows = [MATH, PLAIN_ROW, VANILLA, LARGER]
    assert list(speed_ups(rows, read_reference(Composer(), text)).words) == words


def test_without_a_plain_row_it_is_the_first_with_the_same_workload() -> None:
    """Attention backends beside each other, a batch of two apart from a batch of one."""
    larger = row("attention=vanilla", "workload.batch_size=2", seconds=1.5)
    found = speed_ups([MATH, LARGER, VANILLA, larger])
    assert found.words == ("reference", "reference", "2.00x", "2.00x")
    assert found.notes == (
        f"speed-up: over {MATH.cell_id} (attention=math workload.batch_size=1), "
        f"{LARGER.cell_id} (attention=math workload.batch_size=2) (reference=auto)",
    )


def test_why_a_row_has_none_is_said() -> None:
    rows, plain = [PLAIN_ROW, MATH, LARGER], Reference.from_text("plain")
    assert speed_ups(rows, plain).notes[1:] == (
        "no speed-up for 1 row: there is no valid row of reference=plain with the same model, workload and hardware "
        "that was measured alike",
    )
    absent = speed_ups([MATH, VANILLA], read_reference(Composer(), "recipe:flux"))
    assert absent.notes == ("no speed-up for 2 rows: there is no row of reference=recipe:flux",)
    failed = row(seconds=None, status="error", valid=False)
    assert speed_ups([failed, MATH], Reference.from_text("plain")).notes[-1].startswith("no speed-up for 1 row")


def test_a_row_by_itself_has_nothing_to_be_compared_with() -> None:
    for single in (PLAIN_ROW, row("attention=math", valid=False)):
        found = speed_ups([single])
        assert (found.words, found.notes) == (("",), ())


def test_a_row_that_is_not_valid_is_no_reference() -> None:
    shaky = row(seconds=4.0, valid=False)
    assert speed_ups([shaky, MATH, VANILLA]).words == ("0.50x", "reference", "2.00x")


def test_the_table_has_both() -> None:
    shown = results_table([PLAIN_ROW, MATH])
    column = shown.headers.index("speed-up")
    assert [line[column] for line in shown.rows] == ["reference", "2.00x"]
    assert shown.foot[1:] == (f"speed-up: over {PLAIN_ROW.cell_id} (attention=auto) (reference=auto)",)


@pytest.mark.parametrize(
    ("quartiles", "words"),
    [
        ((0.97, 0.99), "1.02x"),  # ±1 %
        ((0.95, 0.99), "~1.02x"),  # ±2.04 %, and the speed-up is 2.04 %
        ((0.90, 1.10), "~1.02x"),
    ],
)
@pytest.mark.parametrize("shaky", ["row", "reference"])
def test_a_speed_up_that_is_less_than_the_spread_is_marked(
    shaky: str, quartiles: tuple[float, float], words: str
) -> None:
    fast = Latency(samples=(0.98,) * 3, median=0.98, q1=0.98, q3=0.98)
    plain = fast.model_copy(update={"median": 0.9996})
    q1, q3 = (bound * (1 if shaky == "row" else 1.02) for bound in quartiles)
    if shaky == "row":
        fast = fast.model_copy(update={"q1": q1, "q3": q3})
    else:
        plain = plain.model_copy(update={"q1": q1, "q3": q3})
    rows = [
        each.model_copy(update={"metrics": Metrics(latency_s=latency)})
        for each, latency in ((PLAIN_ROW, plain), (MATH, fast))
    ]
    found = speed_ups(rows)
    assert found.words == ("reference", words)
    said = "~: nearer to 1 than the latency of the row or of its reference is spread, so it may be none"
    assert (said in found.notes) is words.startswith("~")


@pytest.mark.parametrize("text", ["", "recipe", "recipe:", "cell:", "first:x", "Plain", "x", 3, None])
def test_what_is_no_reference(text: Any) -> None:
    with pytest.raises(UsageError, match="write recipe:NAME, cell:ID, first, plain or auto"):
        Reference.from_text(text)


@pytest.mark.parametrize("text", ["auto", "plain", "first", "recipe:exact", "cell:0123456789ab"])
def test_a_reference_is_written_as_it_is_read(text: str) -> None:
    assert str(Reference.from_text(text)) == text
