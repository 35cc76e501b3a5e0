"""A study as the published page prints it: rows, columns, what stands where there is no figure, what is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support.rows import ENVIRONMENT, a_result

from diffopt.config.request import Request
from diffopt.config.resolve import compose_requests
from diffopt.errors import UsageError
from diffopt.machine.environment import Environment
from diffopt.machine.nvml import Device
from diffopt.recipe.cell import Cell
from diffopt.results.published import like, places
from diffopt.results.published.charts import charts_of_published
from diffopt.results.published.figures import published_figures
from diffopt.results.published.ladder import ladder_table
from diffopt.results.published.layout import published_entries, published_tables
from diffopt.results.published.like import Likeness
from diffopt.results.published.places import Place
from diffopt.results.result import Latency, Metrics, Result, StageSpeed
from diffopt.results.study import Study

PAGE = "pytorch2"
A100 = "NVIDIA A100-SXM4-80GB"


@cache
def asked(*words: str) -> Request:
    return compose_requests(
        ["hardware=a100", "measure=quick", "precision=fp16", "layout=channels_last_denoiser", *words]
    )[0]


@cache
def sweep(name: str) -> tuple[Cell, ...]:
    return tuple(request.cell for request in compose_requests([f"sweep={name}", "hardware=cpu"], multirun=True))


def likeness(results: Iterable[Result], name: str, gpu: str | None = None) -> Likeness:
    return like.likeness_to_published(list(results), name, sweep(name), gpu)


def places_of(results: Iterable[Result], name: str) -> list[Place]:
    return places.places_on_published_page(list(results), name, sweep(name))


def where(torch: str = "2.13.0", device: str | None = A100) -> Environment:
    found = Device(kind="cuda", name=device, memory_bytes=2**36, gpu=None)
    versions = {**ENVIRONMENT.versions, "torch": torch}
    return ENVIRONMENT.model_copy(update={"versions": versions, "device": found})


def row(*words: str, speeds: tuple[float, ...] = (), at: Environment | None = None, **changes: Any) -> Result:
    """A row of a study; with ``speeds`` it is ok, with one iteration per second for each stage."""
    request, at = asked(*words), at or where()
    stages = tuple(StageSpeed(name=f"s{i}", steps=8, iterations_per_second=speed) for i, speed in enumerate(speeds))
    changes = {"metrics": Metrics(stages=stages), "environment": at, "env_id": at.id, **changes}
    return a_result(request.cell, choices=dict(request.cell.choices), **changes)


def failed(*words: str, status: str, phase: str, reason: str = "because", **more: Any) -> Result:
    return row(*words, status=status, phase=phase, reason=reason, valid=False, **more)


def shown(found: Likeness) -> dict[str, dict[str, dict[str, str]]]:
    """Table, then row, then column."""
    pages = published_tables([*found.ours, *found.beside], found.columns)
    return {
        heading: {line[0]: dict(zip(table.headers[1:], line[1:], strict=True)) for line in table.rows}
        for heading, table in pages
    }


def as_published(*results: Result, gpu: str | None = None) -> dict[str, dict[str, dict[str, str]]]:
    return shown(likeness(sorted(results, key=lambda result: result.cell_id), PAGE, gpu))


COMPILED = ("compile=reduce_overhead",)
WEIGHTS = ("pretrained", "random")
PLAIN_COLUMN, COMPILED_COLUMN = "torch 2.13.0 - <br>no compile", "torch 2.13.0 - <br>compile"


def test_published_figures_and_ratios_stand_beside_ours() -> None:
    page = as_published(
        row("model=sd15", *COMPILED, speeds=(99.48,)),
        row("model=sd15", speeds=(23.13,)),
        row("model=sd15", "workload.batch_size=4", speeds=(6.56,)),
    )
    assert list(page) == [f"{A100} (batch size: 1)", f"{A100} (batch size: 4)"]
    assert page[f"{A100} (batch size: 1)"]["SD - txt2img"] == {
        PLAIN_COLUMN: "23.13",
        COMPILED_COLUMN: "99.48",
        "published nightly - <br>no compile": "23.13",
        "published nightly - <br>compile": "49.74",
        "torch 2.13.0 / published - <br>no compile": "1.00x",
        "torch 2.13.0 / published - <br>compile": "2.00x",
    }
    assert page[f"{A100} (batch size: 4)"]["SD - txt2img"]["torch 2.13.0 / published - <br>no compile"] == "0.50x"


def test_pipelines_stand_in_the_order_of_the_page_whatever_the_order_of_the_study() -> None:
    rows = [
        row("model=sdxl", speeds=(1.0,)),
        row("model=deepfloyd_if", speeds=(1.0, 2.0, 3.0)),
        row("model=sd15_controlnet", speeds=(2.0,)),
        row("model=sd15_inpaint", speeds=(3.0,)),
        row("model=sd15", "workload=img2img", speeds=(4.0,)),
        row("model=sd15", speeds=(5.0,)),
    ]
    (table,) = as_published(*rows).values()
    assert list(table) == list(
        dict.fromkeys(figure.pipeline for figure in published_figures(PAGE) if figure.gpu == "A100")
    )


def test_a_cascade_has_three_figures_and_three_ratios_and_a_batch_only_the_first_ones() -> None:
    page = as_published(
        row("model=deepfloyd_if", speeds=(40.24, 13.7, 12.015)),
        row("model=deepfloyd_if", "workload.batch_size=4", speeds=(36.08, 13.7, 12.015)),
    )
    first, fourth = page[f"{A100} (batch size: 1)"]["IF"], page[f"{A100} (batch size: 4)"]["IF"]
    ratio = "torch 2.13.0 / published - <br>no compile"
    assert first[PLAIN_COLUMN] == "40.24 / <br>13.70 / <br>12.02"
    assert first[ratio] == "2.00x / <br>1.00x / <br>0.50x"
    assert fourth[PLAIN_COLUMN] == "36.08 / <br>13.70 / <br>12.02"
    assert fourth[ratio] == "2.00x"


def test_what_stands_where_there_is_no_figure() -> None:
    found = likeness(
        [
            row("model=sd15", speeds=(20.0,)),
            failed("model=sd15", *COMPILED, status="oom", phase="warmup", reason="out of\nmemory"),
            failed("model=sd15_inpaint", status="refused", phase="plan", reason="no such kernel"),
            failed("model=sd15_inpaint", *COMPILED, status="refused", phase="load", reason="no such device here"),
            failed("model=sd15_controlnet", status="crashed", phase="compile"),
            failed("model=sd15_controlnet", *COMPILED, status="timeout", phase="measure"),
            row("model=sdxl", speeds=(10.0,), valid=False, reason="latency varies"),
        ],
        PAGE,
    )
    (table,) = shown(found).values()
    assert table["SD - txt2img"][COMPILED_COLUMN] == "OOM at warmup"
    assert table["SD - inpaint"][PLAIN_COLUMN] == "❌"
    assert table["SD - inpaint"][COMPILED_COLUMN] == "not here"
    assert table["SDXL - txt2img"][COMPILED_COLUMN] == "-"
    assert table["SD - controlnet"][PLAIN_COLUMN] == "crashed at compile"
    assert table["SD - controlnet"][COMPILED_COLUMN] == "timeout at measure"
    assert table["SDXL - txt2img"][PLAIN_COLUMN] == "10.00 (not valid)"
    assert table["SDXL - txt2img"]["torch 2.13.0 / published - <br>no compile"] == "-"
    notes = "\n".join(found.notes)
    assert f"refused at plan: no such kernel (SD - inpaint, batch 1, torch 2.13.0 - no compile, {A100})" in notes
    assert "oom at warmup: out of memory (SD - txt2img" in notes
    assert "not valid: latency varies" in notes


def test_two_versions_of_torch_are_columns_the_older_one_first() -> None:
    (table,) = as_published(
        row("model=sd15", speeds=(1.0,), at=where("2.13.0")),
        row("model=sd15", *COMPILED, speeds=(2.0,), at=where("2.13.0")),
        row("model=sd15", speeds=(3.0,), at=where("2.9.1")),
        row("model=sd15", *COMPILED, speeds=(4.0,), at=where("2.9.1")),
    ).values()
    columns = [column for column in table["SD - txt2img"] if "published" not in column]
    order = [("2.9.1", "no compile"), ("2.13.0", "no compile"), ("2.9.1", "compile"), ("2.13.0", "compile")]
    assert columns == [f"torch {version} - <br>{mode}" for version, mode in order]
    assert list(table["SD - txt2img"].values())[:4] == ["3.00", "1.00", "4.00", "2.00"]


def test_runtimes_are_named_and_a_refused_row_stands_with_its_own() -> None:
    def by(name: str, result: Result) -> Result:
        return result.model_copy(update={"cell": {**result.cell, "runtime": {"name": name, "python": None}}})

    (table,) = as_published(
        by("current", row("model=sd15", speeds=(1.0,))),
        by("old", row("model=sd15", speeds=(2.0,), at=where("2.10.0"))),
        by("old", failed("model=sd15", *COMPILED, status="refused", phase="plan")),
    ).values()
    assert {k: v for k, v in table["SD - txt2img"].items() if "published" not in k} == {
        "torch 2.10.0 (old) - <br>no compile": "2.00",
        "torch 2.13.0 (current) - <br>no compile": "1.00",
        "torch 2.10.0 (old) - <br>compile": "❌",
    }


def test_tiny_models_stand_for_their_family_without_a_ratio() -> None:
    words = ("precision=fp32", "layout=default")
    rows = [
        row("model=sd15", "model.weights=tiny", *words, speeds=(1.0,)),
        row("model=sd15", "model.weights=tiny", "workload=img2img", *words, speeds=(1.0,)),
        row("model=deepfloyd_if", "model.weights=tiny", *words, speeds=(1.0, 2.0, 3.0)),
    ]
    assert likeness(rows, PAGE).notes == ()
    (table,) = as_published(*rows).values()
    names = ["SD - txt2img (sd15, tiny weights)", "SD - img2img (sd15, tiny weights)"]
    names += ["IF (deepfloyd_if, tiny weights)"]
    assert list(table) == names
    assert table[names[2]] == {PLAIN_COLUMN: "1.00 / <br>2.00 / <br>3.00"}


def test_older_rows_of_tiny_models_stand_for_their_family_too() -> None:
    """They had options of their own, with random weights."""
    older = row("model=sd15", "model.weights=random", "precision=fp32", "layout=default", speeds=(1.0,))
    recipe = {**older.cell["recipe"], "model": {**older.cell["recipe"]["model"], "name": "tiny_sd15"}}
    (table,) = as_published(older.model_copy(update={"cell": {**older.cell, "recipe": recipe}})).values()
    assert table == {"SD - txt2img (tiny_sd15)": {PLAIN_COLUMN: "1.00"}}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("workload.height=256 workload.width=256", "workload.height=256 instead of 512, workload.width=256 instead of"),
        ("workload.steps=30", "workload.steps=30 instead of 50"),
        ("workload.guidance=1.0", "workload.guidance=1.0 instead of 7.5"),
        ("workload=img2img workload.strength=0.5", "workload.strength=0.5 instead of 0.8"),
        ("precision=fp32", "precision=fp32 instead of fp16"),
        ("precision=fp16 precision.tf32=true", "precision.tf32=true instead of false"),
        ("attention=vanilla", "attention=vanilla instead of auto"),
        ("layout=channels_last", "layout=channels_last instead of channels_last_denoiser"),
        ("scheduler=euler", "scheduler=euler instead of default"),
        ("memory=model_offload", "memory=model_offload instead of resident"),
        ("vae=slicing", "vae=slicing instead of default"),
        ("quant=int8_dynamic fuse=qkv", "fuse=qkv instead of none, quant=int8_dynamic instead of none"),
        ("compile=regional", "compile=regional instead of reduce_overhead"),
        ("compile=reduce_overhead compile.fullgraph=false", "compile.fullgraph=false instead of true"),
    ],
)
def test_what_the_page_did_not_measure_is_not_compared(words: str, says: str) -> None:
    found = likeness([row("model=sd15", *words.split(), speeds=(90.0,))], PAGE)
    assert found.beside == ()
    assert found.ours[0].text == "90.00"
    (note,) = found.notes
    assert note.startswith(f"not compared, since sweep=pytorch2 asks otherwise: {says}")
    assert note.endswith(f", {A100})")


def test_what_does_not_change_a_stage_s_speed_is_compared() -> None:
    same = ("workload.prompt=a lighthouse", "workload.seed=7", "model.weights=random", "measure=standard")
    found = likeness([row("model=sd15", *same, speeds=(23.13,))], PAGE)
    assert [entry.text for entry in found.beside] == ["23.13", "1.00x"]
    assert found.notes == ()


@pytest.mark.parametrize("vae", ["vae=slicing", "vae=default"])
def test_slicing_is_the_sweep_s_own_where_the_page_says_nothing(vae: str) -> None:
    found = likeness([row("model=sdxl", "workload.batch_size=4", vae, speeds=(1.0,))], PAGE)
    assert (len(found.beside), found.notes) == (2, ())


def test_every_cell_of_the_sweep_is_compared() -> None:
    asked = compose_requests(["sweep=pytorch2", "hardware=a100", "model.weights=random"], multirun=True)
    rows = []
    for request in asked:
        at, speeds = where(), (1.0,) * len(request.cell.recipe.model.stages)
        stages = tuple(StageSpeed(name=f"s{i}", steps=8, iterations_per_second=speed) for i, speed in enumerate(speeds))
        values: dict[str, Any] = {"metrics": Metrics(stages=stages), "environment": at, "env_id": at.id}
        rows.append(a_result(request.cell, choices=dict(request.cell.choices), **values))
    found = likeness(rows, PAGE)
    notes = [note.partition(" (")[0] for note in found.notes]
    assert notes == ["stage 2 is IF-II-M-like: random weights, of inferred widths"]
    assert len(found.ours) == 36
    assert len(found.beside) == 2 * 36, "and a ratio for each"


H100 = "NVIDIA H100 80GB HBM3"


def test_a_gpu_that_the_page_has_not_can_stand_beside_one_that_it_has() -> None:
    mine = [row("hardware=h100", "model=sd15", speeds=(46.26,), at=where(device=H100))]
    alone = likeness(mine, PAGE)
    assert alone.beside == ()
    assert alone.notes == (
        f"the page has no {H100}; its GPUs are A100, V100, T4, RTX 3090, RTX 4090. --gpu NAME puts the figures of one "
        f"of them beside every row",
    )
    (table,) = as_published(*mine, gpu="A100").values()
    assert table["SD - txt2img"] == {
        PLAIN_COLUMN: "46.26",
        "published nightly, A100 - <br>no compile": "23.13",
        "torch 2.13.0 / published, A100 - <br>no compile": "2.00x",
    }
    assert likeness(mine, PAGE, "A100").notes == ()


def test_a_row_that_never_met_its_gpu_stands_with_those_that_did() -> None:
    gone = where(device=None)
    page = as_published(
        row("model=sd15", speeds=(20.0,)),
        failed("model=sdxl", status="refused", phase="load", at=gone),
        failed("model=sd15", status="refused", phase="load", at=gone),  # measured elsewhere: left out
    )
    assert {name: list(table) for name, table in page.items()} == {
        f"{A100} (batch size: 1)": ["SD - txt2img", "SDXL - txt2img"]
    }


def plain_column(*results: Result) -> dict[str, str]:
    (table,) = as_published(*results).values()
    return {name: columns[PLAIN_COLUMN] for name, columns in table.items()}


def test_rows_of_one_cell_are_told_apart() -> None:
    assert plain_column(row("model=sd15", speeds=(1.0,)), row("model=sd15", "attention=vanilla", speeds=(2.0,))) == {
        "SD - txt2img": "1.00",
        "SD - txt2img, attention=vanilla": "2.00",
    }
    tiny = [row("model=sd15", "model.weights=tiny", f"attention={kind}", speeds=(1.0,)) for kind in ("sdpa", "vanilla")]
    assert list(plain_column(*tiny)) == [
        f"SD - txt2img (sd15, tiny weights), attention={kind}" for kind in ("sdpa", "vanilla")
    ]
    seeds = [row("model=sd15", f"workload.seed={seed}", speeds=(1.0,)) for seed in (0, 1)]
    assert list(plain_column(*seeds)) == ["SD - txt2img, workload.seed=0", "SD - txt2img, workload.seed=1"]
    twice = row("model=sd15", speeds=(1.0,)), row("model=sd15", speeds=(2.0,), env_id="1" * 12)
    assert plain_column(*twice) == {f"SD - txt2img, env {where().id}": "1.00", f"SD - txt2img, env {'1' * 12}": "2.00"}


@pytest.mark.parametrize(
    ("words", "others", "names"),
    [
        (COMPILED, ("compile.fullgraph=false",), ("", ", compile.fullgraph=false")),
        (
            ("compile=regional",),
            ("compile.fullgraph=false", "workload.seed=1"),
            (f", compile.fullgraph={full} workload.seed={seed}" for full, seed in (("true", 0), ("false", 1))),
        ),
        (("model.weights=pretrained",), ("model.weights=random",), (f", model.weights={w}" for w in WEIGHTS)),
        (
            ("model.revision=main",),
            (f"model.revision={'a' * 40}",),
            (f", model.revision={commit}" for commit in ("main", "a" * 40)),
        ),
    ],
)
def test_rows_of_one_option_are_told_apart_by_their_values(
    words: tuple[str, ...], others: tuple[str, ...], names: Iterable[str]
) -> None:
    rows = [row("model=sd15", *words, speeds=(1.0,)), row("model=sd15", *words, *others, speeds=(2.0,))]
    (table,) = as_published(*rows).values()
    column = COMPILED_COLUMN if rows[0].cell["recipe"]["compile"]["kind"] != "none" else PLAIN_COLUMN
    assert {name: columns[column] for name, columns in table.items()} == dict(
        zip((f"SD - txt2img{more}" for more in names), ("1.00", "2.00"), strict=True)
    )
    for columns in table.values():
        published = columns.get(f"published nightly - <br>{column.partition('<br>')[2]}", "-")
        ratio = columns.get(f"torch 2.13.0 / published - <br>{column.partition('<br>')[2]}", "-")
        assert ratio == ("-" if published == "-" else f"{float(columns[column]) / float(published):.2f}x")


def test_no_row_hides_another() -> None:
    """Every row of a study has a spot of its own, at the last by the name of its cell."""
    study = [
        row("model=sd15", *words, speeds=(1.0,))
        for words in (
            (),
            ("model.weights=random",),
            ("attention=vanilla",),
            ("attention=vanilla", "attention.components=[denoiser,vae]"),
            *(
                (f"compile={option}", *more)
                for option in ("regional", "reduce_overhead", "default")
                for more in ((), ("compile.fullgraph=false",), ("compile.dynamic=true", "model.weights=random"))
            ),
            ("hardware=auto",),
            ("measure=standard", "workload.seed=3"),
        )
    ]
    same = study[0].model_copy(update={"cell_id": "2" * 12})
    elsewhere = study[0].model_copy(update={"env_id": "3" * 12})
    found = places_of([*study, same, elsewhere], PAGE)
    assert len({place.spot for place in found}) == len(found) == len(study) + 2
    assert any(place.pipeline.endswith(f"cell {'2' * 12}") for place in found)


def test_what_a_batch_is_given_by_the_sweep_is_not_in_the_names_of_rows() -> None:
    """Slicing differs between batches and not between the rows of one."""
    page = as_published(
        *(
            row("model=sdxl", f"workload.batch_size={size}", f"vae={vae}", f"measure={measure}", speeds=(1.0,))
            for size, vae in ((1, "default"), (4, "slicing"))
            for measure in ("standard", "pytorch2")
        )
    )
    names = [f"SDXL - txt2img, measure={measure}" for measure in ("pytorch2", "standard")]
    assert [list(table) for table in page.values()] == [names, names]


def test_the_page_s_own_rows_keep_their_name_beside_those_of_a_ladder() -> None:
    ladder = ("model=sdxl", "workload.steps=30", "scheduler=euler", "layout=default", "attention=vanilla")
    page = as_published(
        row("model=sdxl", speeds=(1.0,)),
        row("model=sdxl", "workload.batch_size=4", "vae=slicing", speeds=(2.0,)),
        row(*ladder, "precision=tf32", speeds=(3.0,)),
        row(*ladder, "precision=bf16", speeds=(4.0,)),
    )
    first, fourth = page.values()
    rest = "attention=vanilla layout=default scheduler=euler workload.steps=30"
    assert {name: columns[PLAIN_COLUMN] for name, columns in first.items()} == {
        "SDXL - txt2img": "1.00",
        f"SDXL - txt2img, precision=bf16 {rest}": "4.00",
        f"SDXL - txt2img, precision=tf32 {rest}": "3.00",
    }
    assert list(fourth) == ["SDXL - txt2img"]
    ratios = [columns["torch 2.13.0 / published - <br>no compile"] for columns in first.values()]
    assert [ratio == "-" for ratio in ratios] == [False, True, True]


def test_the_charts_have_the_page_s_settings_where_a_pipeline_was_measured_with_them() -> None:
    found = likeness(
        [
            row("model=sd15", speeds=(1.0,)),
            row("model=sd15", "attention=vanilla", speeds=(2.0,)),
            row("model=sd15", "compile=regional", speeds=(3.0,)),  # a column of the page's row
            row("model=sd15", "workload.batch_size=4", "attention=vanilla", speeds=(4.0,)),
            row("model=sd15", "model.weights=tiny", "attention=vanilla", speeds=(5.0,)),
            failed("model=sd15_inpaint", status="oom", phase="load"),
            row("model=sd15_inpaint", "memory=model_offload", speeds=(6.0,)),
        ],
        PAGE,
    )
    assert [entry.text for entry in found.ours if entry not in found.drawn] == ["2.00"]
    assert found.notes[-1] == (
        "rows that the charts leave out, since they have the page's settings where there are such rows: "
        "1 of SD - txt2img"
    )


def test_several_ways_to_compile_are_named() -> None:
    (table,) = as_published(
        row("model=sd15", "compile=reduce_overhead", speeds=(1.0,)),
        row("model=sd15", "compile=regional", speeds=(2.0,)),
    ).values()
    ours = [column for column in table["SD - txt2img"] if "published" not in column]
    assert ours == [f"torch 2.13.0 - <br>compile={option}" for option in ("reduce_overhead", "regional")]
    ratios = [column for column in table["SD - txt2img"] if "/ published" in column]
    assert ratios == ["torch 2.13.0 / published - <br>compile=reduce_overhead"], "the page did not compile regionally"


def test_other_pipelines_are_left_out_and_said() -> None:
    others = (
        row("model=flux_dev", "model.weights=tiny", "precision=bf16", speeds=(1.0,)),
        row("model=deepfloyd_if_i_m", speeds=(1.0,)),
    )
    found = likeness([row("model=sd15", speeds=(20.0,)), *others], PAGE)
    assert [entry.pipeline for entry in found.ours] == ["SD - txt2img"]
    assert found.notes == (
        "left out, since the benchmark has no such pipeline: flux_dev txt2img, deepfloyd_if_i_m txt2img",
    )
    with pytest.raises(UsageError, match="No row of this study is of a pipeline that the benchmark has: sd15 txt2img"):
        likeness(others, PAGE)


@cache
def gpu_matrix() -> list[Result]:
    """A row for each cell of the sweep on an H100."""
    rows = []
    for request in compose_requests(["sweep=gpu_matrix", "hardware=h100"], multirun=True):
        cell, at = request.cell, where(device=H100)
        stages = tuple(StageSpeed(name=s.name, steps=8, iterations_per_second=9.0) for s in cell.recipe.model.stages)
        latency = Latency(samples=(1.0,), median=1.0, q1=1.0, q3=1.0)
        values: dict[str, Any] = {"environment": at, "env_id": at.id}
        values["metrics"] = Metrics(stages=stages, latency_s=latency)
        rows.append(a_result(cell, choices=dict(cell.choices), **values))
    return rows


@pytest.mark.parametrize(("page", "rungs"), [("accelerate_inference", "123456"), ("flux", "1")])
def test_the_gpu_matrix_has_rungs_of_each_ladder(page: str, rungs: str) -> None:
    table = ladder_table(sorted(gpu_matrix(), key=lambda row: row.cell_id), page)
    lines = [dict(zip(table.headers, line, strict=True)) for line in table.rows]
    assert len(lines) == len(gpu_matrix())
    asked = compose_requests([f"sweep={page}", "hardware=h100", "model.weights=random", "measure=quick"], multirun=True)
    ids = {request.cell.id for request in asked}
    assert [line["rung"] for line in lines if line["cell"] in ids] == list(rungs)


def test_the_whole_gpu_matrix_has_a_place_for_each_row_and_a_chart_as_the_page_s() -> None:
    rows = gpu_matrix()
    found = likeness(rows, PAGE, "A100")
    spots = {(e.gpu, e.batch_size, e.pipeline, e.torch, e.mode) for e in found.ours}
    assert len(spots) == len(found.ours) == len(places_of(rows, PAGE))
    assert len(found.ours) > 20
    (first, *_) = charts_of_published(found.drawn)[-1].panels
    theirs = charts_of_published(published_entries(published_figures(PAGE)), "A100")[-1].panels[0]
    assert first.groups == theirs.groups
    assert max(map(len, found.notes)) < 500


def test_the_command(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    study = Study.create(tmp_path / "studies/mine")
    for result in (row("model=sd15", speeds=(20.0,)), row("model=sd15", *COMPILED, speeds=(40.0,))):
        study.keep(result)
    code, out, err = cli("report", "mine", "--like", "pytorch2")
    assert (code, err) == (0, "")
    assert out.startswith(
        f"### {A100} (batch size: 1)\n\n| **Pipeline** | **{PLAIN_COLUMN}** | **{COMPILED_COLUMN}** |"
    )
    assert "above 1x ours is faster" in out
    assert "speed-up by torch.compile" in out
    assert "2.00x\n" in out
    code, _, _ = cli("report", "mine", "--like", "pytorch2", "--charts", "drawn")
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["pipelines.png", "speedup.png"]


def test_the_command_s_gpu_is_the_page_s_or_the_study_s(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    study = Study.create(tmp_path / "studies/mine")
    study.keep(row("hardware=h100", "model=sd15", speeds=(20.0,), at=where(device=H100)))
    code, out, err = cli("report", "mine", "--like", "pytorch2", "--gpu", "a100")
    assert (code, err) == (0, "")
    assert "**published nightly, A100 - <br>no compile**" in out
    assert "the page's figure of the A100 of the newest torch" in out
    assert f"All pipelines on {H100}" in out
    code, out, err = cli("report", "mine", "--like", "pytorch2", "--gpu", "h100")
    assert (code, err) == (0, "")
    assert "published nightly" not in out
    assert f"the page has no {H100}" in out
    code, out, err = cli("report", "mine", "--like", "pytorch2", "--gpu", "b200")
    assert (code, out) == (2, "")
    assert f"--gpu b200 is not one of the study's GPUs: {H100}; and none of the page's: A100, V100" in err


def test_a_gpu_that_several_of_the_study_are_called_by_is_said_to_be_so(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    study = Study.create(tmp_path / "studies/mine")
    for device in (H100, "NVIDIA H100 PCIe", "NVIDIA GH200 480GB"):
        study.keep(row("hardware=h100", "model=sd15", speeds=(20.0,), at=where(device=device)))
    code, out, err = cli("report", "mine", "--like", "pytorch2", "--gpu", "h100")
    assert (code, out) == (2, "")
    assert f"--gpu h100 is several of the study's GPUs: {H100}, NVIDIA H100 PCIe. A longer part of a name" in err
    code, out, err = cli("report", "mine", "--like", "pytorch2", "--gpu", "h100pcie")
    assert (code, err) == (0, "")
    assert "All pipelines on NVIDIA H100 PCIe" in out


def notes_of(*results: Result) -> tuple[str, ...]:
    return likeness(sorted(results, key=lambda result: result.cell_id), PAGE).notes


def test_notes_name_a_pipeline_of_a_gpu_once_and_no_more_than_three() -> None:
    tasks = (
        ("model=sd15",),
        ("model=sd15", "workload=img2img"),
        ("model=sd15_inpaint",),
        ("model=sd15_controlnet",),
        ("model=sdxl",),
    )
    many = [
        failed(*words, f"workload.batch_size={size}", *mode, status="oom", phase="load")
        for words in tasks
        for size in (1, 4)
        for mode in ((), COMPILED)
    ]
    (note,) = notes_of(*many)
    where = f"batch 1 and 4, torch 2.13.0 - no compile and torch 2.13.0 - compile, {A100}"
    three = "; ".join(f"SD - {task}, {where}" for task in ("txt2img", "img2img", "inpaint"))
    assert note == f"oom at load: because ({three}; and 2 more)"


def test_notes_say_of_no_row_what_holds_for_another() -> None:
    batches = [(f"workload.batch_size={size}",) for size in (1, 4)]
    rows = [
        row("model=sd15", *batches[0], speeds=(1.0,)),
        failed("model=sd15", *batches[1], status="oom", phase="load"),
        *(failed("model=sd15", *batch, *COMPILED, status="oom", phase="load") for batch in batches),
    ]
    plain, compiled = (f"torch 2.13.0 - {mode}, {A100}" for mode in ("no compile", "compile"))
    (note,) = notes_of(*rows)
    assert note == (f"oom at load: because (SD - txt2img, batch 1 and 4, {compiled}; SD - txt2img, batch 4, {plain})")


def test_rows_that_are_not_compared_are_named_without_the_settings_that_the_note_says() -> None:
    changed = ("attention=vanilla", "workload.steps=30")
    found = notes_of(row("model=sdxl", speeds=(1.0,)), row("model=sdxl", *changed, speeds=(2.0,)))
    assert found[0] == (
        "not compared, since sweep=pytorch2 asks otherwise: attention=vanilla instead of auto, workload.steps=30 "
        f"instead of 50 (SDXL - txt2img, batch 1, torch 2.13.0 - no compile, {A100})"
    )


def test_a_reason_is_of_the_row_that_it_names() -> None:
    slow = failed("model=sd15", "attention=vanilla", status="oom", phase="load")
    found = notes_of(row("model=sd15", speeds=(1.0,)), slow)
    assert (
        f"oom at load: because (SD - txt2img, attention=vanilla, batch 1, torch 2.13.0 - no compile, {A100})" in found
    )


def test_a_ladder_is_one_table(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    study = Study.create(tmp_path / "studies/mine")
    rung = ("model=sdxl", "precision=bf16", "layout=default", "attention=sdpa")
    study.keep(row(*rung, speeds=(3.0,)))
    code, out, err = cli("report", "mine", "--like", "accelerate_inference")
    assert (code, err) == (0, "")
    assert "| rung" in out
    code, out, err = cli("report", "mine", "--like", "flux", "--charts", "drawn")
    assert (code, out) == (2, "")
    assert "--like flux is one table" in err
