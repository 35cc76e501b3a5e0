"""A plan goes to another process as a file, and is what it was; what is not the same there is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.rows import a_cell

from diffopt.errors import Refusal
from diffopt.recipe.plan import make_plan
from diffopt.recipe.planned import read_plan_file


def test_a_plan_is_read_as_it_was_made(tmp_path: Path) -> None:
    made = make_plan(a_cell("fuse=qkv", "compile=default"))
    made.write(tmp_path / "plan.json")
    read = read_plan_file(tmp_path / "plan.json")
    assert read == made
    assert str(read) == str(made)
    assert [group for group, _ in read.steps] != sorted(group for group, _ in read.steps), "an order of their own"


def test_a_refused_plan_is_refused_where_it_is_read(tmp_path: Path) -> None:
    made = make_plan(a_cell("quant=fp8_dynamic"))
    made.write(tmp_path / "plan.json")
    with pytest.raises(Refusal) as caught:
        read_plan_file(tmp_path / "plan.json")
    assert str(caught.value).splitlines() == made.reasons


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(cell_id="0" * 12),
        lambda data: data["cell"]["workload"].update(seed=7),
        lambda data: data["steps"].reverse(),
    ],
)
def test_what_another_process_reads_otherwise_is_refused(tmp_path: Path, change: Callable[[Any], None]) -> None:
    file = tmp_path / "plan.json"
    make_plan(a_cell("fuse=qkv", "compile=default")).write(file)
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(Refusal, match="the same diffopt has to plan a cell and to run it"):
        read_plan_file(file)
