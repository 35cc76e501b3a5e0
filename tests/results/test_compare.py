"""A against B: what is compared with what, what may differ, and when the gate closes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.rows import ENVIRONMENT, a_result

from diffopt.config.resolve import cell_from_config, compose_requests
from diffopt.errors import UsageError
from diffopt.machine.environment import Environment
from diffopt.machine.git import Git
from diffopt.recipe.recipe import STEP_GROUPS
from diffopt.results.compare import compare_studies
from diffopt.results.comparison import comparison_table, environment_changes_between_studies
from diffopt.results.result import Latency, Metrics, PeakMemory, Result
from diffopt.results.sides import RowFilter, is_selection_of_rows, row_selections
from diffopt.results.study import Study

Cli = Callable[..., tuple[int, str, str]]
NEWER = Environment(**{**ENVIRONMENT.model_dump(), "versions": {"python": "3.11.0", "torch": "2.14.0"}})
ELSEWHERE = ENVIRONMENT.model_copy(update={"device": ENVIRONMENT.device.model_copy(update={"name": "Another"})})


def row(
    *words: str, seconds: float | None = 1.0, spread: float = 0.0, runtime: str | None = None, **more: Any
) -> Result:
    (request,) = compose_requests(["hardware=cpu", "measure=quick", *words])
    cell, choices = request.cell, {**request.cell.choices}
    if runtime is not None:
        cell = cell_from_config({**cell.model_dump(mode="json"), "runtime": {"name": runtime, "python": f"/{runtime}"}})
        choices["runtime"] = runtime
    if seconds is not None:
        sides = {"q1": seconds - spread, "median": seconds, "q3": seconds + spread}
        latency = Latency(samples=tuple(sides.values()), **sides)
        more["metrics"] = Metrics(latency_s=latency, peak_memory_bytes=PeakMemory(steady=2**30))
    if "environment" in more:
        more["env_id"] = more["environment"].id
    return a_result(cell, choices=choices, **more)


def changed(before: list[Result], after: list[Result], key: str | None = None) -> list[str]:
    return [comparison.change for comparison in compare_studies(before, after, key)]


@pytest.mark.parametrize(
    ("before", "after", "change", "ratio"),
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
def test_changed(before: dict[str, Any], after: dict[str, Any], change: str, ratio: float | None) -> None:
    (found,) = compare_studies([row(**before)], [row(**after)])
    assert (found.change, found.ratio) == (change, ratio)


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
    with pytest.raises(UsageError, match=r"No cell of A has a counterpart in B: they also differ in workload\.steps\."):
        compare_studies([row()], [row("workload.steps=3"), row("workload.steps=3", "workload.seed=5")])
    with pytest.raises(UsageError, match="they also differ in .*, .*, .* and [0-9]+ more"):
        compare_studies([row()], [row("compile=default")])
    with pytest.raises(UsageError, match="A ran on A processor, B on Another"):
        compare_studies([row()], [row(environment=ELSEWHERE)])
    assert changed([row(), row("compile=default")], [row(), row(environment=ELSEWHERE)]) == ["same", "absent"]
    assert changed([row(), row("compile=default")], [row(), row("compile=default", environment=ELSEWHERE)]) == [
        "same",
        "other device",
    ]
    assert changed([row()], [row(environment=ELSEWHERE)], "hardware") == ["same"], "asked for"


def test_the_sides_of_one_study_differ_in_their_key_alone() -> None:
    none, default = row(), row("compile=default", seconds=0.5)
    assert changed([none, row("attention=math")], [default], "compile") == ["faster", "absent"]
    few, many = row("workload.steps=3"), row("workload.steps=6", seconds=2.0)
    assert changed([few], [many], "workload.steps") == ["slower"]
    pictures = [
        row("workload=img2img", "model=sd15", "model.weights=tiny", f"workload.image={name}")
        for name in ("scene", "edges")
    ]
    assert changed(pictures[:1], pictures[1:], "workload.image") == ["same"]
    assert changed([row("recipe=baseline")], [row("recipe=pytorch2", "precision=bf16")], "recipe") == ["same"]


def test_within_one_study_runtimes_and_environments_differ_only_where_asked() -> None:
    rows = [
        row(),
        row("compile=default", seconds=0.5),
        row(environment=NEWER),
        row("compile=default", seconds=0.8, environment=NEWER),
    ]
    sides = [[r for r in rows if RowFilter("compile", option).takes(r)] for option in ("none", "default")]
    found = compare_studies(*sides, "compile", one_study=True)
    assert [(c.before.env_id == c.after.env_id, c.ratio) for c in found if c.after] == [(True, 2.0), (True, 1.25)]
    runtimes = [row(), row(runtime="t214"), row("compile=default"), row("compile=default", runtime="t214")]
    found = compare_studies(runtimes[:2], runtimes[2:], "compile", one_study=True)
    assert [comparison.name for comparison in found] == ["runtime=current", "runtime=t214"]
    with pytest.raises(UsageError, match="in different runtimes or environments, which runtime= or env= would"):
        compare_studies(rows[:1], rows[3:], "compile", one_study=True)
    assert changed(rows[:1], rows[2:3]) == ["same"], "two studies"


@pytest.mark.parametrize(
    "words",
    [("attention=sdpa",), ("model=deepfloyd_if", "precision=fp16", "model.weights=random"), ("quant=int8_dynamic",)],
)
def test_what_only_describes_may_differ_and_what_came_later_may_be_missing(words: tuple[str, ...]) -> None:
    other = row(*words)
    for part in ("model", "hardware", *(group for group in other.cell["recipe"] if group in STEP_GROUPS)):
        for key in ("licence", "evidence", "parameters", "activations"):
            if isinstance(other.cell["recipe"][part].get(key), str):
                other.cell["recipe"][part][key] = "another"
    for stage in other.cell["recipe"]["model"]["cascade"]:
        stage["licence"] = "another"
    del other.cell["measure"]["starts"], other.cell["runtime"]
    assert changed([row(*words)], [other]) == ["same"]
    other.cell["recipe"]["model"]["size_multiple"] = 4
    with pytest.raises(UsageError, match=r"differ in model\.size_multiple"):
        compare_studies([row(*words)], [other])


def test_a_recipe_that_is_gone_is_told() -> None:
    gone = row()
    gone.cell["recipe"]["compile"]["kind"] = "hopefully"
    with pytest.raises(UsageError, match="a recipe that this diffopt does not know: .*hopefully"):
        compare_studies([row()], [gone])


def test_two_rows_that_would_stand_beside_one_must_be_told_apart() -> None:
    twice = [row(), row(environment=NEWER)]
    with pytest.raises(UsageError, match=f"A has two rows .* cell .* env={ENVIRONMENT.id} and env={NEWER.id}"):
        compare_studies(twice, [row()])
    with pytest.raises(UsageError, match="B has two rows .* runtime=current and runtime=t214"):
        compare_studies([row()], [row(), row(runtime="t214")])
    partly = row("compile=default", "compile.fullgraph=false")
    with pytest.raises(
        UsageError, match="compile.fullgraph=true and compile.fullgraph=false; choose the sides by what"
    ):
        compare_studies([row()], [row("compile=default"), partly], "compile")
    assert [r.env_id for r in twice if RowFilter("env", NEWER.id).takes(r)] == [NEWER.id]


def test_an_option_is_known_by_its_other_names() -> None:
    probed = row().model_copy(update={"choices": {"hardware": "auto"}})
    assert [RowFilter("hardware", name).takes(probed) for name in ("auto", "cpu", "a100")] == [True, True, False]
    unsaid = row().model_copy(update={"choices": {}})
    assert RowFilter("compile", "none").takes(unsaid)
    assert RowFilter("workload.image", "scene").takes(row("model=sd15", "model.weights=tiny", "workload=img2img"))


def test_paths_with_an_equals_sign_are_studies() -> None:
    words = ("compile=none", "workload.steps=3", "./a=b", "a/b=c", "env=", "=x")
    assert [is_selection_of_rows(word) for word in words] == [True, True, False, False, True, False]


def test_what_environments_differ_in_is_told() -> None:
    fewer = ENVIRONMENT.model_copy(update={"cpu": ENVIRONMENT.cpu.model_copy(update={"threads": 2})})
    committed = ENVIRONMENT.model_copy(update={"git": Git(commit="abc", dirty=True)})
    assert environment_changes_between_studies(compare_studies([row()], [row(environment=fewer)])) == [
        "threads: 4 -> 2"
    ]
    assert environment_changes_between_studies(compare_studies([row()], [row(environment=committed)])) == [
        "commit: none -> abc with changes"
    ]


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
        row_selections(words, studies)


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


@pytest.mark.parametrize(
    ("before", "after", "fails"),
    [
        ({}, {"seconds": None, "status": "oom", "valid": False}, True),
        ({"valid": False}, {"seconds": None, "status": "crashed", "valid": False}, True),
        (
            {"seconds": None, "status": "error", "valid": False},
            {"seconds": None, "status": "oom", "valid": False},
            False,
        ),
        ({"valid": False}, {}, False),
        ({"seconds": 0.0}, {"seconds": 1.0}, True),
    ],
)
def test_what_fails_at_any_percentage(before: dict[str, Any], after: dict[str, Any], fails: bool) -> None:
    (found,) = compare_studies([row(**before)], [row(**after)])
    assert found.fails(1000) is fails


def test_no_ratio_to_no_time() -> None:
    (found,) = compare_studies([row()], [row(seconds=0.0)])
    assert (found.ratio, found.change, found.fails(0)) == (None, "faster", False)


def test_the_gate_closes_for_what_is_gone_or_was_not_judged(two: Path, cli: Cli) -> None:
    keep(two / "studies" / "less", [row(seconds=0.5)])
    keep(two / "studies" / "noisy", [row(valid=False)])
    code, _, err = cli("compare", "before", "less", "--slower", "50")
    assert (code, err) == (1, "diffopt: --slower 50: compile=default: absent\n")
    code, _, err = cli("compare", "less", "before", "--slower", "500")
    assert (code, err.startswith("diffopt: 1 cells of B have no counterpart in A: ")) == (0, True)
    code, _, err = cli("compare", "noisy", "less", "--slower", "50")
    assert code == 1
    assert "no cell has a figure on both sides, so nothing was judged" in err
    assert cli("compare", "before", "less", "compile=none", "--slower", "50")[0] == 0, "of both studies that option"


def test_the_gate_closes_for_rows_that_cannot_be_read(two: Path, cli: Cli) -> None:
    damaged, *_ = sorted((two / "studies" / "before").glob("cells/*/*/result.json"))
    damaged.write_text("{")
    code, _, err = cli("compare", "before", "before", "--slower", "50")
    assert code == 1
    assert err.count("cannot be read as a result") == 2
    assert "--slower 50: not judged: left out: " in err
    (damaged.parent / "cell.yaml").write_text("")
    damaged.unlink()
    code, _, err = cli("compare", "before", "before", "--slower", "50")
    assert (code, "--slower 50: not judged: 1 cells have no row" in err) == (1, True)


def test_a_refusal_for_want_of_a_device_does_not_stand_beside_a_row(two: Path, cli: Cli) -> None:
    absent = row(seconds=None, status="refused", phase="load", valid=False, environment=ELSEWHERE)
    keep(two / "studies" / "again", [absent, row()])
    assert cli("compare", "again", "before")[0] == 0


def test_json(two: Path, cli: Cli) -> None:
    code, out, _ = cli("compare", "before", "after", "--json")
    found = json.loads(out)
    assert (code, found["changes"]) == (0, ["torch: 2.13.0 -> 2.14.0"])
    (slow,) = (cell for cell in found["cells"] if cell["change"] == "slower")
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
        (("before", "nothing=1", "nothing=2"), "its rows have no nothing"),
        (("before", "after", "--slower", "-3"), "--slower -3: give the percentage"),
        (("before", "after", "--slower", "nan"), "--slower nan: give the percentage"),
    ],
)
def test_mistakes_are_one_paragraph_and_exit_code_2(two: Path, cli: Cli, words: tuple[str, ...], said: str) -> None:
    code, out, err = cli("compare", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_a_row_without_a_figure_says_why() -> None:
    found = compare_studies([row()], [row(seconds=None, status="oom", phase="compile", valid=False, reason="8 GiB")])
    (line,) = comparison_table(found).rows
    assert line[-2:] == ("broken", "B: oom at compile, 8 GiB")
