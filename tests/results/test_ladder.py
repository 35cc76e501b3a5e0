"""The table of a ladder: its order, what each rung adds and gains, and what stands where there is no figure."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from support.rows import ENVIRONMENT, a_result

from diffopt.config.request import Request
from diffopt.config.resolve import compose_requests
from diffopt.errors import UsageError
from diffopt.recipe.plan import make_plan
from diffopt.results.published.ladder import LADDERS, ladder_table
from diffopt.results.result import Latency, Metrics, Result, StageSpeed


@cache
def asked(*words: str) -> list[Request]:
    return compose_requests(list(words), multirun=True)


def row(request: Request, seconds: float | None, **changes: Any) -> Result:
    if seconds is not None:
        changes["metrics"] = Metrics(
            latency_s=Latency(samples=(seconds,) * 3, median=seconds, q1=seconds, q3=seconds),
            stages=(StageSpeed(name="unet", steps=30, iterations_per_second=30 / seconds),),
        )
    else:
        changes = {"status": "oom", "phase": "compile", "valid": False, "reason": "out of memory", **changes}
    return a_result(request.cell, choices=dict(request.cell.choices), **changes)


def climbed(results: Sequence[Result], name: str = "accelerate_inference") -> list[dict[str, str]]:
    """The lines of the table by header; the results come as a study gives them, in no order of the sweep."""
    ordered = sorted(results, key=lambda result: result.cell_id)
    table = ladder_table(ordered, name)
    assert all(len(line) == len(table.headers) for line in table.rows)
    return [dict(zip(table.headers, line, strict=True)) for line in table.rows]


def column(lines: Sequence[dict[str, str]], name: str) -> list[str]:
    return [line[name] for line in lines]


SECONDS = (7.36, 4.63, 3.31, 2.54, 2.52, 2.43)  # the published ladder, diffusers, tutorials/fast_diffusion


def test_the_rungs_come_in_the_order_of_the_sweep_with_their_gains() -> None:
    rungs = asked("sweep=accelerate_inference", "hardware=a100")
    lines = climbed([row(request, seconds) for request, seconds in zip(rungs, SECONDS, strict=True)])
    assert column(lines, "cell") == [request.cell.id for request in rungs]
    assert column(lines, "rung") == list("123456")
    assert column(lines, "adds") == [
        "precision=tf32 attention=vanilla",
        "precision=bf16",
        "attention=sdpa",
        "layout=channels_last compile=max_autotune",
        "fuse=qkv",
        "quant=int8_dynamic_sdxl",
    ]
    assert column(lines, "latency s") == ["7.36", "4.63", "3.31", "2.54", "2.52", "2.43"]
    assert column(lines, "over the rung before") == ["", "1.59x", "1.40x", "1.30x", "1.01x", "1.04x"]
    assert column(lines, "over the first") == ["", "1.59x", "2.22x", "2.90x", "2.92x", "3.03x"]
    assert lines[0]["it/s"] == "4.076"
    assert column(lines, "reason") == [""] * 6


def test_a_rung_without_a_figure_says_why_and_is_not_counted() -> None:
    rungs = asked("sweep=accelerate_inference", "hardware=a100")
    results = [row(request, seconds) for request, seconds in zip(rungs, SECONDS, strict=True)]
    results[2] = row(rungs[2], 3.0, valid=False, reason="latency varies")
    results[3] = row(rungs[3], None)
    lines = climbed(results)
    assert column(lines, "status")[2:5] == ["ok, not valid", "oom", "ok"]
    assert column(lines, "reason")[2:5] == ["latency varies", "compile: out of memory", ""]
    assert column(lines, "latency s")[2:5] == ["3", "", "2.52"]
    assert column(lines, "over the rung before")[2:] == ["1.54x", "", "1.84x (over rung 2)", "1.04x"]
    assert column(lines, "over the first")[2:] == ["2.45x", "", "2.92x", "3.03x"]


def test_nothing_is_compared_with_a_first_rung_that_failed() -> None:
    rungs = asked("sweep=accelerate_inference", "hardware=a100")
    lines = climbed([row(rungs[0], None), *(row(request, 2.0) for request in rungs[1:3])])
    assert column(lines, "over the rung before") == ["", "", "1.00x"]
    assert column(lines, "over the first") == ["", "", ""]


def test_each_model_and_each_machine_has_its_own_ladder() -> None:
    rungs = asked("sweep=flux", "hardware=h100")
    elsewhere = ENVIRONMENT.model_copy(update={"versions": {"torch": "2.12.0"}})
    results = [row(request, 4.0 / (i + 1)) for i, request in enumerate(rungs)]
    results += [row(request, 9.0, environment=elsewhere, env_id=elsewhere.id) for request in rungs[:7]]
    lines = climbed(results, "flux")
    assert column(lines, "rung") == list("1234567") * 3
    assert column(lines, "model") == ["flux_dev"] * 7 + ["flux_schnell"] * 14
    assert len(set(column(lines, "device"))) == 2
    assert [line["over the first"] for line in lines if line["rung"] == "7"] != ["7.00x"] * 3
    assert column(lines, "adds")[:7] == [
        "precision=bf16",
        "compile=max_autotune_plain",
        "fuse=qkv",
        "layout=channels_last_vae",
        "attention=flash3",
        "quant=fp8_dynamic",
        "compile=max_autotune",
    ]


@pytest.mark.parametrize(
    ("words", "rungs"),
    [
        (("sweep=flux", "attention=cudnn", "model=flux_dev"), "123467"),
        (("sweep=accelerate_inference", "attention=sdpa"), "13456"),
        (("sweep=accelerate_inference", "quant=none", "compile=regional"), "12345"),
        (("sweep=accelerate_inference", "model=sdxl", "model.weights=tiny", "workload.steps=2"), "123456"),
    ],
)
def test_what_the_command_line_fixes_keeps_the_order(words: tuple[str, ...], rungs: str) -> None:
    requested = asked(*words, "hardware=h100")
    lines = climbed([row(request, 1.0) for request in requested], words[0].removeprefix("sweep="))
    assert column(lines, "cell") == [request.cell.id for request in requested]
    assert "".join(column(lines, "rung")) == rungs


def test_a_part_of_a_ladder_keeps_its_numbers() -> None:
    rungs = asked("sweep=accelerate_inference", "hardware=a100")
    assert column(climbed([row(request, 1.0) for request in rungs[3:5]]), "rung") == ["4", "5"]


def test_other_cells_of_the_study_come_last_without_a_number() -> None:
    rungs = asked("sweep=accelerate_inference", "hardware=a100")
    (other,) = asked("model=sdxl", "hardware=a100", "scheduler=euler", "workload.steps=30", "attention=math")
    lines = climbed([*(row(request, 1.0) for request in rungs), row(other, 0.5)])
    assert (lines[-1]["cell"], lines[-1]["rung"], lines[-1]["adds"]) == (other.cell.id, "", "attention=math")
    assert (lines[-1]["latency s"], lines[-1]["over the first"]) == ("0.5", "")


def test_a_study_that_is_no_ladder_is_a_usage_error() -> None:
    others = asked("model=sdxl", "hardware=a100", "attention=math,cudnn")
    with pytest.raises(UsageError, match="is a rung of sweep=flux"):
        ladder_table([row(request, 1.0) for request in others], "flux")


@pytest.mark.parametrize("words", [("precision=bf16",), ("precision=fp16", "layout=channels_last_denoiser"), ()])
def test_a_cell_alone_is_a_rung_only_with_all_of_its_options(words: tuple[str, ...]) -> None:
    (other,) = asked("model=sdxl", "hardware=a100", *words)
    with pytest.raises(UsageError, match="No cell of this study is a rung of sweep=accelerate_inference"):
        ladder_table([row(other, 1.0)], "accelerate_inference")
    rungs = [row(request, 1.0) for request in asked("sweep=accelerate_inference", "hardware=a100")]
    lines = climbed([*rungs, row(other, 1.0)])
    assert {line["cell"]: line["rung"] for line in lines}[other.cell.id] == ""
    assert sorted(column(lines, "rung")) == ["", *"123456"]


@pytest.mark.parametrize("name", LADDERS)
@pytest.mark.parametrize("models", [("sd15",), ("sdxl",), ("sd15", "sdxl", "deepfloyd_if")])
def test_the_page_of_another_benchmark_has_no_rung(name: str, models: tuple[str, ...]) -> None:
    """A part of a rung's options is found in many rows; one rung alone is no ladder."""
    rows = [
        row(request, 1.0)
        for request in asked("sweep=pytorch2", "hardware=h100", "workload.batch_size=1,4")
        if request.cell.recipe.model.name in models
    ]
    with pytest.raises(UsageError, match=f"No cell of this study is a rung of sweep={name}"):
        climbed(rows, name)


def test_rows_beside_a_ladder_are_no_rungs_of_it() -> None:
    rungs = asked("sweep=accelerate_inference", "hardware=h100", "precision=tf32,bf16", "compile=none")
    others = asked("sweep=pytorch2", "hardware=h100", "workload.batch_size=1")
    lines = climbed([row(request, 1.0) for request in (*rungs, *others)])
    numbered = {line["cell"] for line in lines if line["rung"]}
    assert numbered <= {request.cell.id for request in rungs}
    assert len(numbered) >= 3


def test_only_the_models_of_a_ladder_climb_it() -> None:
    words = ("precision=bf16", "hardware=h100", "compile=none,max_autotune_plain")
    with pytest.raises(UsageError, match=r"a rung of sweep=flux, a ladder of flux_schnell and flux_dev\."):
        climbed([row(request, 1.0) for request in asked("model=sdxl", *words)], "flux")
    for weights in ("random", "tiny"):
        model = ("model=flux_dev", f"model.weights={weights}")
        lines = climbed([row(request, 1.0) for request in asked(*model, *words)], "flux")
        assert column(lines, "rung") == ["1", "2"]
    whole = [row(request, 1.0) for request in asked("sweep=accelerate_inference", "model=sd15", "hardware=a100")]
    numbers = [str(number + 1) for number in range(len(whole))]
    assert column(climbed(whole, "accelerate_inference"), "rung") == numbers, "run as a ladder all the same"


@pytest.mark.parametrize(("name", "place"), [("accelerate_inference", "a100"), ("flux", "h100")])
def test_every_rung_can_work_where_the_ladder_was_published(name: str, place: str) -> None:
    assert name in LADDERS
    found = asked(f"sweep={name}", f"hardware={place}")
    assert [make_plan(request.cell).problems for request in found] == [()] * len(found)
    assert {request.cell.recipe.model.name for request in found} <= {"sdxl", "flux_dev", "flux_schnell"}


def test_no_torch_is_imported() -> None:
    code = "import sys, diffopt.results.published.ladder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
