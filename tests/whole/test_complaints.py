"""docs/complaints.md names tests that exist; and the tests of complaints that no other file shows."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch._dynamo.utils as dynamo
from support.places import REPO

from diffopt.config.resolve import compose_requests
from diffopt.pipeline.worker import Work
from diffopt.recipe.plan import Plan, make_plan
from diffopt.recipe.recipe import STEP_GROUPS

FURTHER = "## Twenty further reports"


def rows_of(text: str) -> list[list[str]]:
    """The cells of each numbered line of a table."""
    lines = [line for line in text.splitlines() if re.match(r"\| \d", line)]
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]


ROWS, FURTHER_ROWS = map(rows_of, (REPO / "docs/complaints.md").read_text(encoding="utf-8").split(FURTHER))


def plan(*words: str) -> Plan:
    (request,) = compose_requests(words)
    return make_plan(request.cell)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_complaint_is_answered_by_tests_that_exist(row: list[str]) -> None:
    _, complaint, answer, shown = row
    assert "https://github.com/" in complaint
    assert existing_tests(shown) or "not yet" in answer


@pytest.mark.parametrize("row", FURTHER_ROWS, ids=[row[0] for row in FURTHER_ROWS])
def test_a_further_report_was_tried_and_is_shown_by_tests_that_exist(row: list[str]) -> None:
    _, report, tried, before, after, shown = row
    links = re.findall(r"\]\((https://github\.com/[\w.-]+/[\w.-]+/(?:issues|pull)/\d+)\)", report)
    assert links
    assert not any(link in complaint for link in links for _, complaint, *_ in ROWS), "it is among the complaints above"
    assert all((tried, before, after))
    assert existing_tests(shown)


def existing_tests(shown: str) -> list[tuple[str, str]]:
    """The tests that a row names; asserts that they are there."""
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", shown)
    assert len(tests) == shown.count("::")
    for file, name in tests:
        assert re.search(rf"^def {name}\(", (REPO / file).read_text(encoding="utf-8"), re.M), f"{file} has no {name}"
    return tests


def test_every_complaint_is_there_in_order() -> None:
    assert [row[0] for row in ROWS] == [str(number) for number in range(1, 27)]
    assert [row[0] for row in FURTHER_ROWS] == [str(number) for number in range(1, 21)]


def test_nothing_is_optimized_unless_asked() -> None:
    chosen = plan("model=sd15", "hardware=a100").cell.recipe
    kinds = {group: getattr(chosen, group).kind for group in STEP_GROUPS}
    assert {group for group, kind in kinds.items() if kind != "none"} == {"precision", "memory"}
    assert (chosen.precision.dtype, kinds["memory"]) == ("float32", "resident")


def test_one_order_whatever_was_typed_first() -> None:
    words = ("cache=first_block", "compile=regional", "quant=int8_weight", "fuse=qkv", "lora=fused", "attention=sdpa")
    for typed in (words, words[::-1]):
        found = [group for group, _ in plan("model=flux_dev", "hardware=h100", "precision=bf16", *typed).steps]
        assert found == ["precision", "memory", "lora", "fuse", "quant", "attention", "compile", "cache"]


def test_quantizing_without_compiling_is_noted() -> None:
    words = ("model=flux_dev", "hardware=h200", "precision=bf16", "quant=int8_dynamic")
    assert any("without compile, quantizing mostly costs time" in note for note in plan(*words).notes)
    assert not any("without compile" in note for note in plan(*words, "compile=regional").notes)


class Meter:
    """What the first call of a pipeline looks like to the worker."""

    memory = SimpleNamespace(reset=lambda: None, peak=lambda: 1, reserved=lambda: None)

    def call(self) -> Any:
        return SimpleNamespace(latency=1.0)

    def samples(self) -> list[Any]:
        return []


@pytest.mark.parametrize(
    ("found", "loaded", "valid"),
    [
        ({"fxgraph_cache_hit": 2}, True, True),
        ({"fxgraph_cache_miss": 2}, True, False),
        ({}, True, False),  # compile=none
        ({"fxgraph_cache_miss": 2}, False, True),
    ],
)
def test_an_artifact_that_gave_no_graph_makes_a_row_not_valid(
    found: dict[str, int], loaded: bool, valid: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamo, "counters", {"inductor": Counter(found), "aot_packages": Counter(loaded=3)})
    artifact = (tmp_path / "cache.zip", "0" * 64) if loaded else None
    work = Work(tmp_path / "plan.json", tmp_path, report=lambda phase: None, gpu=None, load_artifact=artifact)
    work._call_first(Meter())  # type: ignore[arg-type]
    said = "the compile artifact cache.zip was loaded, but no graph came from it"
    assert work._complaints == ([] if valid else [said])
    assert work._outcome("ok", None).valid is valid
