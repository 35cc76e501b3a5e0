"""A study as a table, as CSV and as a contact sheet; what is compared with what."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.rows import ENVIRONMENT, a_result

from diffopt.cli import printing
from diffopt.config.resolve import compose_requests
from diffopt.errors import UsageError
from diffopt.recipe.labels import cell_labels
from diffopt.results.reference import reference_row_of
from diffopt.results.result import (
    Artifacts,
    CompileCache,
    Latency,
    Metrics,
    PeakMemory,
    PeakReserved,
    Result,
    Round,
    StageSpeed,
    StepEffect,
)
from diffopt.results.row_files import read_result
from diffopt.results.sheet import GAP, SIDE, contact_sheet
from diffopt.results.spread import is_within_spread
from diffopt.results.study import Study
from diffopt.results.table import Table, results_table, values_table
from diffopt.schema.reference import PLAIN


def row(*overrides: str, seconds: float | None = None, **changes: Any) -> Result:
    (request,) = compose_requests(["hardware=cpu", "measure=quick", *overrides])
    if seconds is not None:
        changes["metrics"] = Metrics(
            first_call_s=9.0,
            latency_s=Latency(samples=(seconds,) * 3, median=seconds, q1=seconds, q3=seconds),
            stages=(StageSpeed(name="unet", steps=8, iterations_per_second=8 / seconds),),
            images_per_second=1 / seconds,
            peak_memory_bytes=PeakMemory(first_call=2**30, steady=2**29),
        )
    return a_result(request.cell, choices=dict(request.cell.choices), **changes)


def cells(text: str) -> list[dict[str, str]]:
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


STUDY = [
    row(seconds=1.0),
    row("compile=default", seconds=0.5),
    row("compile=regional", status="oom", phase="compile", valid=False, reason="out | of\nmemory"),
    row("compile=dynamic", status="ok", valid=False, reason="latency varies", seconds=2.0),
]


def test_the_table_says_what_differs_how_fast_and_why_not() -> None:
    found = cells(results_table(STUDY).markdown().replace("\\|", "/"))
    assert [line["compile"] for line in found] == ["none", "default", "regional", "dynamic"]
    assert "model" not in found[0], "what all rows share is left out"
    assert [line["speed-up"] for line in found] == ["reference", "2.00x", "", "0.50x"]
    assert [line["status"] for line in found] == ["ok", "ok", "oom", "ok, not valid"]
    assert found[2]["reason"] == "compile: out / of memory"
    assert (found[1]["latency s"], found[1]["it/s"], found[1]["peak MiB"]) == ("0.5 ±0.0%", "16", "512")


def noisy(result: Result, *, rounds: int = 0) -> Result:
    """The samples of a real row: quartiles at ±12.3 %."""
    own = Round(
        seconds=9.0,
        samples=5,
        load_s=1.0,
        first_call_s=2.0,
        warmup_s=3.0,
        compile_cache=None,
        peak_memory_bytes=PeakMemory(),
        peak_reserved_bytes=PeakReserved(),
    )
    latency = Latency(samples=(0.1326,) * 15, median=0.1326, q1=0.11629, q3=0.14891)
    return with_metrics(result, latency_s=latency).model_copy(update={"rounds": (own,) * rounds})


def test_a_median_stands_with_its_spread_and_the_number_of_samples() -> None:
    shown = results_table([noisy(STUDY[0], rounds=3), noisy(STUDY[1])])
    assert [(line["latency s"], line["n"]) for line in cells(shown.markdown())] == [("0.1326 ±12%", "15")] * 2
    assert (
        shown.foot[0] == "latency: median of n samples, in 1 or 3 rounds, ± half the distance between their quartiles"
    )
    assert results_table([noisy(STUDY[0])]).foot == (
        "latency: median of n samples, ± half the distance between their quartiles",
    )
    assert results_table(STUDY[2:3]).foot == ()
    read = csv.DictReader(io.StringIO(values_table([noisy(STUDY[0], rounds=2), STUDY[2]]).csv()))
    line = next(iter(read))
    assert (line["metrics.latency_s.n"], line["round_2.samples"]) == ("15", "5")
    assert float(line["metrics.latency_s.spread"]) == pytest.approx(0.123, abs=1e-4)


def test_a_column_of_reasons_is_there_where_a_row_has_one() -> None:
    assert results_table(STUDY).headers[-1] == "reason"
    assert results_table(STUDY[:2]).headers[-1] == "peak MiB"


def test_on_a_terminal_of_100_columns_no_figure_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    cache = CompileCache(hits=0, misses=9)
    rows = [with_metrics(noisy(row, rounds=3), compile_cache=cache, first_call_s=34.5) for row in STUDY[:2]]
    printing._draw_table(results_table(rows))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    figures = [line for line in lines if "0.1326 ±12%" in line]
    assert len(figures) == 2
    assert all("34.5 (cold)" in line and "512" in line for line in figures)


def test_the_reference_has_the_customary_dtype_and_no_other_optimization() -> None:
    base, fast = STUDY[:2]
    assert reference_row_of(fast, [fast, base]) is base
    for unlike in (
        row("workload.steps=3", seconds=1.0),
        row("precision=bf16", seconds=1.0),
        row("attention=math", seconds=1.0),
        row("scheduler=ddim", seconds=1.0),
        row(seconds=1.0, env_id="0" * 12),
        row(status="error", valid=False),
    ):
        assert reference_row_of(fast, [fast, unlike], PLAIN) is None


@pytest.mark.parametrize(
    "unlike",
    [
        row(seconds=1.0, valid=False),
        row("measure.warmup=9", seconds=1.0),
        row("precision.vae=float16", seconds=1.0),
    ],
)
def test_a_reference_is_valid_measured_alike_and_has_the_customary_vae(unlike: Result) -> None:
    assert reference_row_of(STUDY[1], [unlike], PLAIN) is None


def test_a_corrected_data_sheet_does_not_part_a_cell_from_its_reference() -> None:
    base, fast = STUDY[:2]
    model = {**base.cell["recipe"]["model"], "parameters": 7}
    older = base.model_copy(update={"cell": {**base.cell, "recipe": {**base.cell["recipe"], "model": model}}})
    assert reference_row_of(fast, [older]) is older


def test_a_row_of_before_there_were_rounds_is_measured_alike() -> None:
    base, fast = STUDY[:2]
    measure = {key: value for key, value in base.cell["measure"].items() if key not in ("rounds", "starts")}
    older = base.model_copy(update={"cell": {**base.cell, "measure": measure}})
    assert reference_row_of(fast, [older]) is older
    other = base.model_copy(update={"cell": {**base.cell, "measure": {**measure, "rounds": 3}}})
    assert reference_row_of(fast, [other]) is None


def with_metrics(result: Result, **changes: Any) -> Result:
    return result.model_copy(update={"metrics": result.metrics.model_copy(update=changes)})


def test_a_first_call_is_cold_or_warm() -> None:
    caches = (None, CompileCache(hits=3, misses=0), CompileCache(hits=5, misses=1))
    lines = cells(results_table([with_metrics(STUDY[0], compile_cache=cache) for cache in caches]).markdown())
    assert [line["first call s"] for line in lines] == ["9", "9 (warm)", "9 (cold)"]


def test_the_peak_of_cuda_graphs_is_what_was_reserved() -> None:
    reserved = with_metrics(STUDY[1], peak_reserved_bytes=PeakReserved(first_call=2**31, steady=2**30))
    effect = StepEffect(group="compile", kind="full", summary="", numbers={"graphs": 1, "cuda_graphs": 2})
    graphs = reserved.model_copy(update={"effects": (effect,)})
    assert [line["peak MiB"] for line in cells(results_table([reserved, graphs]).markdown())] == ["512", "1024"]


def test_a_report_leaves_unreadable_rows_out_and_says_so(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    study = Study.create(tmp_path / "studies/mine")
    for result in STUDY[:2]:
        study.keep(result)
    damaged, other = (study.folder(result.cell_id, result.env_id) / "result.json" for result in STUDY[:2])
    damaged.write_text('{"schema')
    code, out, err = cli("report", "mine")
    assert code == 0
    assert STUDY[1].cell_id in out
    assert STUDY[0].cell_id not in out
    assert err.startswith("diffopt: left out: ")
    assert f"{STUDY[0].cell_id}" in err
    assert "again replaces it" in err
    other.write_text("")
    code, out, err = cli("report", "mine")
    assert (code, out) == (2, "")
    assert "has no result that can be read" in err


def test_a_cell_refused_elsewhere_and_measured_here_is_one_row() -> None:
    refused = row(status="refused", phase="load", valid=False, reason="no GPU", env_id="0" * 12)
    assert len(results_table([refused, STUDY[0]]).rows) == 1
    assert len(results_table([refused, STUDY[1]]).rows) == 2


def test_two_environments_are_told_apart() -> None:
    elsewhere = row(seconds=3.0, env_id="1" * 12)
    shown = results_table([STUDY[0], elsewhere])
    assert "device" in shown.headers
    assert ENVIRONMENT.id in " ".join(shown.rows[0])
    assert [line[shown.headers.index("speed-up")] for line in shown.rows] == ["", ""], "each is by itself"


def test_csv_has_every_value_and_reads_back() -> None:
    read = list(csv.DictReader(io.StringIO(values_table(STUDY).csv())))
    assert [line["status"] for line in read] == ["ok", "ok", "oom", "ok"]
    assert read[1]["metrics.latency_s.median"] == "0.5"
    assert read[1]["metrics.stage_unet.iterations_per_second"] == "16.0"
    assert read[2]["reason"] == "out | of\nmemory"
    assert read[0]["cell.recipe.compile.kind"] == "none"


def test_the_contact_sheet_shows_each_picture_and_each_failure(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s")
    red = row(seconds=1.0, artifacts=Artifacts(pictures=("0.png",)))
    folder = study.folder(red.cell_id, red.env_id)
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(folder / "0.png")
    sheet = contact_sheet(study, [red, STUDY[2]])
    middle = GAP + SIDE // 2
    assert sheet.getpixel((middle, middle)) == (255, 0, 0)
    assert sheet.getpixel((middle + SIDE + GAP, middle)) == (255, 255, 255)
    assert sheet.width == 2 * (SIDE + GAP) + GAP


@pytest.mark.parametrize("part", ["recipe", "recipe.quant", "recipe.quant.kind", "recipe.model.dtype", "workload"])
def test_a_row_whose_cell_is_not_one_is_not_read(tmp_path: Path, part: str) -> None:
    """The schema says that ``cell`` is a mapping; what reports compare in it must be there too."""
    data = STUDY[0].model_dump(mode="json")
    *parents, leaf = part.split(".")
    node = data["cell"]
    for name in parents:
        node = node[name]
    del node[leaf]
    (tmp_path / "result.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=f"its cell has no {part}"):
        read_result(tmp_path / "result.json")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema_version": ' + "9" * 5000 + "}"])
def test_json_that_is_too_much(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UsageError, match="cannot be read as a result"):
        read_result(tmp_path / "result.json")


def test_a_picture_is_named_by_its_file_and_a_copy_of_it_has_the_same_reference(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "copy.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "blue.png")
    red, copy, blue = (
        compose_requests(
            [
                "hardware=cpu",
                "model=sd15",
                "model.weights=tiny",
                "workload=img2img",
                f"workload.image={tmp_path / name}",
            ]
        )[0].cell
        for name in ("red.png", "copy.png", "blue.png")
    )
    names = cell_labels([cell.model_dump(mode="json") for cell in (red, blue)])
    assert names == [{"workload.image.path": "red.png"}, {"workload.image.path": "blue.png"}]
    assert red.id == copy.id != blue.id
    faster = compose_requests(
        [
            "hardware=cpu",
            "model=sd15",
            "model.weights=tiny",
            "workload=img2img",
            f"workload.image={tmp_path / 'copy.png'}",
            "fuse=qkv",
        ]
    )[0].cell
    rows = [a_result(red), a_result(blue), a_result(faster)]
    assert reference_row_of(rows[2], rows) is rows[0]


FACES = Table(("name", "s", "why"), (("a", "1.5", "x | y"), ("long one", "10", "")), right=frozenset({1}))


def test_a_prompt_with_a_line_end_stays_in_its_line() -> None:
    plain = row(seconds=1.0)
    workload = {**plain.cell["workload"], "prompts": ["a\nb\x1b[31m"]}
    rows = [
        plain,
        row(seconds=1.0, reason="one\ntwo").model_copy(update={"cell": {**plain.cell, "workload": workload}}),
    ]
    shown = results_table(rows)
    for face in (shown.text(), shown.markdown(), shown.compact()):
        (line,) = [line for line in face.splitlines() if "31m" in line]
        assert r"a\nb\u001b[31m" in line
        assert "one two" in line
        assert "\x1b" not in face


def test_the_faces_of_a_table() -> None:
    assert FACES.markdown() == (
        "| name     |   s | why    |\n"
        "| -------- | --: | ------ |\n"
        "| a        | 1.5 | x \\| y |\n"
        "| long one |  10 |        |\n"
    )
    assert FACES.compact() == "| name | s | why |\n|---|---:|---|\n| a | 1.5 | x \\| y |\n| long one | 10 |  |\n"
    assert FACES.centred().splitlines()[:2] == ["| **name** | **s** | **why** |", "|:---:|:---:|:---:|"]
    assert FACES.centred().splitlines()[2:] == FACES.compact().splitlines()[2:]
    assert FACES.text() == "name      s    why\na         1.5  x | y\nlong one  10\n"
    assert Table((), FACES.rows).text() == "a         1.5  x | y\nlong one  10\n"
    assert FACES.csv() == "name,s,why\na,1.5,x | y\nlong one,10,\n"


def test_a_column_of_one_letter_has_a_rule_of_markdown() -> None:
    shown = Table(("cell", "n"), (("a", "3"),), frozenset({1}))
    assert shown.markdown() == "| cell |  n |\n| ---- | -: |\n| a    |  3 |\n"


@pytest.mark.parametrize("ratio", [1.5, 1 / 1.5])
def test_what_is_within_the_spread_is_so_both_ways(ratio: float) -> None:
    wide = Latency(samples=(1.0,) * 3, median=1.0, q1=0.4, q3=1.6)
    narrow = Latency(samples=(1.0,) * 3, median=1.0, q1=0.9, q3=1.1)
    assert is_within_spread(ratio, wide, narrow)
    assert not is_within_spread(ratio, narrow)
