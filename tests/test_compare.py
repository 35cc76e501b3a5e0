"""A against B: what is compared with what, what may differ, and when the gate closes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rows import ENVIRONMENT, a_result

from diffopt.compare import Selection, compare, comparison_table, selections
from diffopt.environment import Environment
from diffopt.errors import UsageError
from diffopt.resolve import make_cell, requests
from diffopt.result import Latency, Metrics, PeakMemory, Result
from diffopt.study import Study

Cli = Callable[..., tuple[int, str, str]]
NEWER = Environment(**{**ENVIRONMENT.model_dump(), "versions": {"python": "3.11.0", "torch": "2.14.0"}})
ELSEWHERE = ENVIRONMENT.model_copy(update={"device": ENVIRONMENT.device.model_copy(update={"name": "Another"})})


def row(
    *words: str, seconds: float | None = 1.0, spread: float = 0.0, runtime: str | None = None, **more: Any
) -> Result:
    (request,) = requests(["hardware=cpu", "measure=quick", *words])
    cell, choices = request.cell, {**request.choices}
    if runtime is not None:
        cell = make_cell({**cell.model_dump(mode="json"), "runtime": {"name": runtime, "python": f"/{runtime}"}})
        choices["runtime"] = runtime
    if seconds is not None:
        sides = {"q1": seconds - spread, "median": seconds, "q3": seconds + spread}
        latency = Latency(samples=tuple(sides.values()), **sides)
        more["metrics"] = Metrics(latency_s=latency, peak_memory_bytes=PeakMemory(steady=2**30))
    if "environment" in more:
        more["env_id"] = more["environment"].id
    return a_result(cell, choices=choices, **more)


def verdicts(before: list[Result], after: list[Result], key: str | None = None) -> list[str]:
    return [comparison.verdict for comparison in compare(before, after, key)]


@pytest.mark.parametrize(
    ("before", "after", "verdict", "ratio"),
    [
        ({"seconds": 2.0}, {"seconds": 1.0}, "faster", 2.0),
        ({"seconds": 1.0}, {"seconds": 1.25}, "slower", 0.8),
        ({"seconds": 1.0, "spread": 0.2}, {"seconds": 1.25, "spread": 0.2}, "same", 0.8),
        ({}, {"seconds": None, "status": "oom", "valid": False}, "broken", None),
        ({}, {"valid": False, "reason": "latency varies"}, "broken", None),
        ({"seconds": None, "status": "error", "valid": False}, {}, "mended", None),
        ({"valid": False}, {"valid": False}, "no figure", None),
    ],
)
def test_verdicts(before: dict[str, Any], after: dict[str, Any], verdict: str, ratio: float | None) -> None:
    (found,) = compare([row(**before)], [row(**after)])
    assert (found.verdict, found.ratio) == (verdict, ratio)


def test_versions_and_runtimes_may_differ_and_are_told(cli: Cli, tmp_path: Path) -> None:
    rows = [
        row(),
        row("compile=default", seconds=0.5),
        row(runtime="t214", seconds=0.8, environment=NEWER),
        row("compile=default", runtime="t214", seconds=0.25, environment=NEWER),
    ]
    keep(tmp_path / "both", rows)
    code, out, err = cli("compare", "./both", "runtime=current", "runtime=t214")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == ["runtime: current -> t214", "torch: 2.13.0 -> 2.14.0"]
    told = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[4:]]
    assert sorted((cells[0], cells[3], cells[6]) for cells in told) == [
        ("compile=default", "2.00x", "faster"),
        ("compile=none", "1.25x", "faster"),
    ]


def test_everything_else_that_was_asked_must_be_alike() -> None:
    with pytest.raises(UsageError, match="No cell of A has a counterpart in B: they differ in more"):
        compare([row()], [row("workload.steps=3")])
    with pytest.raises(UsageError, match="they ran on other devices"):
        compare([row()], [row(environment=ELSEWHERE)])
    assert verdicts([row(), row("compile=default")], [row(), row(environment=ELSEWHERE)]) == ["same", "absent"]
    assert verdicts([row(), row("compile=default")], [row(), row("compile=default", environment=ELSEWHERE)]) == [
        "same",
        "other device",
    ]
    assert verdicts([row()], [row(environment=ELSEWHERE)], "hardware") == ["same"], "asked for"


def test_the_sides_of_one_study_differ_in_their_key_alone() -> None:
    none, default = row(), row("compile=default", seconds=0.5)
    assert verdicts([none, row("attention=math")], [default], "compile") == ["faster", "absent"]
    few, many = row("workload.steps=3"), row("workload.steps=6", seconds=2.0)
    assert verdicts([few], [many], "workload.steps") == ["slower"]


def test_what_only_describes_may_differ() -> None:
    other = row()
    other.cell["recipe"]["model"]["licence"] = "another"
    assert verdicts([row()], [other]) == ["same"]
    other.cell["recipe"]["model"]["licence"], other.cell["recipe"]["model"]["weights"] = None, "random"
    with pytest.raises(UsageError, match="differ in more"):
        compare([row()], [other])


def test_two_rows_of_a_cell_on_one_side_must_be_told_apart() -> None:
    twice = [row(), row(environment=NEWER)]
    with pytest.raises(UsageError, match=f"A has two rows of one cell .*env={ENVIRONMENT.id} and env={NEWER.id}"):
        compare(twice, [row()])
    with pytest.raises(UsageError, match="B has two rows of one cell .*runtime=current and runtime=t214"):
        compare([row()], [row(), row(runtime="t214")])
    assert [r.env_id for r in twice if Selection("env", NEWER.id).takes(r)] == [NEWER.id]


@pytest.mark.parametrize(
    ("words", "studies", "said"),
    [
        ([], 1, "two studies, or one study and the two sides"),
        (["compile=none"], 1, "two studies, or one study and the two sides"),
        (["a=1", "a=2", "a=3"], 2, "one KEY=VALUE for each side, but got 3"),
        (["compile=none", "quant=none"], 1, "differ in one key, but compile and quant"),
        (["compile=none", "compile=none"], 1, "Both sides are compile=none"),
    ],
)
def test_words_that_choose_no_two_sides(words: list[str], studies: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        selections(words, studies)


def keep(path: Path, rows: list[Result]) -> None:
    study = Study.create(path)
    for result in rows:
        study.keep(result)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    keep(tmp_path / "studies" / "before", [row(), row("compile=default", seconds=0.5)])
    slow = row(seconds=1.08, environment=NEWER)
    keep(tmp_path / "studies" / "after", [slow, row("compile=default", seconds=0.5, environment=NEWER)])
    return tmp_path


@pytest.mark.parametrize(("percent", "code"), [("5", 1), ("10", 0)])
def test_the_gate(two: Path, cli: Cli, percent: str, code: int) -> None:
    got, out, err = cli("compare", "before", "after", "--slower", percent)
    assert (got, "slower" in out) == (code, True)
    assert err == ("diffopt: --slower 5: compile=none: slower\n" if code else "")
    assert cli("compare", "before", "after")[0] == 0, "no gate was asked for"


def test_the_gate_closes_for_what_is_gone_or_broken(two: Path, cli: Cli) -> None:
    keep(two / "studies" / "less", [row(seconds=0.5)])
    keep(two / "studies" / "oom", [row(seconds=None, status="oom", valid=False), row("compile=default", seconds=0.5)])
    code, _, err = cli("compare", "before", "less", "--slower", "50")
    assert (code, err) == (1, "diffopt: --slower 50: compile=default: absent\n")
    code, _, err = cli("compare", "before", "oom", "--slower", "50")
    assert (code, err) == (1, "diffopt: --slower 50: compile=none: broken\n")
    assert cli("compare", "before", "oom", "compile=default", "--slower", "50")[0] == 0, "of both studies that option"


def test_json(two: Path, cli: Cli) -> None:
    code, out, _ = cli("compare", "before", "after", "--json")
    found = json.loads(out)
    assert (code, found["changes"]) == (0, ["torch: 2.13.0 -> 2.14.0"])
    (slow,) = (cell for cell in found["cells"] if cell["verdict"] == "slower")
    assert slow["speed_up"] == pytest.approx(1 / 1.08)
    assert (slow["a"]["latency_s"]["median"], slow["b"]["latency_s"]["median"]) == (1.0, 1.08)
    assert slow["b"]["peak_memory_bytes"] == 2**30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "one study or two, but got 0"),
        (("before", "after", "more"), "one study or two, but got 3"),
        (("before", "never"), "study=never"),
        (("before", "compile=none", "compile=regional"), "no row with compile=regional; it has compile=default, none"),
        (("before", "nothing=1", "nothing=2"), "it has no nothing"),
        (("before", "after", "--slower", "-3"), "--slower -3: give the percentage"),
    ],
)
def test_mistakes_are_one_paragraph_and_exit_code_2(two: Path, cli: Cli, words: tuple[str, ...], said: str) -> None:
    code, out, err = cli("compare", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_a_row_without_a_figure_says_why() -> None:
    found = compare([row()], [row(seconds=None, status="oom", stage="compile", valid=False, reason="8 GiB")])
    (line,) = comparison_table(found).rows
    assert line[-2:] == ("broken", "B: oom at compile, 8 GiB")
