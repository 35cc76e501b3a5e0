"""The published benchmark as a sweep: nothing of it is missing, its settings are the page's, and it runs as a whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from diffopt.config import shipped_conf
from diffopt.config.request import Request
from diffopt.config.resolve import compose_requests
from diffopt.errors import UsageError
from diffopt.results.published.figures import published_figures
from diffopt.results.study import Study

PIPELINES = [
    ("sd15", "txt2img"),
    ("sd15", "img2img"),
    ("sd15_inpaint", "inpaint"),
    ("sd15_controlnet", "controlnet"),
    ("deepfloyd_if", "txt2img"),
    ("sdxl", "txt2img"),
]
FANTASY = "ghibli style, a fantasy landscape with castles"


def swept(*words: str, folders: tuple[Path, ...] = ()) -> list[Request]:
    return compose_requests(["sweep=pytorch2", *words], multirun=True, folders=folders)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What the real command says of each cell for the page's five GPUs; it must not import torch."""
    code = (
        "import sys; from diffopt.cli.main import main;"
        "code = main(['plan', '-m', 'sweep=pytorch2', 'hardware=a100,v100,t4,rtx3090,rtx4090']);"
        "bad = sorted({'torch', 'diffusers', 'transformers', 'torchao', 'accelerate'} & set(sys.modules));"
        "print('imported:', *bad, file=sys.stderr); sys.exit(code or bool(bad))"
    )
    folder = tmp_path_factory.mktemp("plan")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "imported:\n")
    found = re.findall(r"^[0-9a-f]{12}  (ok|refused) +(.*)$", done.stdout, re.MULTILINE)
    return [{"status": status, **dict(word.split("=", 1) for word in label.split())} for status, label in found]


def point(cell: dict[str, str]) -> tuple[Any, ...]:
    compiled = {"none": False, "reduce_overhead": True}[cell["compile"]]
    return cell["hardware"], int(cell["workload.batch_size"]), cell["model"], cell["workload"], compiled


def published_points(*, measured: bool) -> set[tuple[Any, ...]]:
    return {
        (f.hardware, f.batch_size, f.option, "txt2img" if f.task == "cascade" else f.task, f.compiled)
        for f in published_figures("pytorch2")
        if f.status == "ok" or not measured
    }


def test_every_published_cell_is_planned(planned: list[dict[str, str]]) -> None:
    asked = published_points(measured=False)
    assert len(asked) == 5 * 3 * 5 * 2 + 3 * 3 * 2, "5 pipelines on 5 GPUs, SDXL on 3 of them"
    assert asked - {point(cell) for cell in planned} == set()
    assert len(planned) == 6 * 3 * 2 * 5


def test_no_cell_is_refused_that_the_page_measured(planned: list[dict[str, str]]) -> None:
    refused = {point(cell) for cell in planned if cell["status"] != "ok"}
    assert refused & published_points(measured=True) == set()


def test_the_settings_are_those_of_the_page() -> None:
    found = swept("hardware=a100", "workload.batch_size=4")
    assert [(r.cell.choices["model"], r.cell.choices["workload"]) for r in found] == PIPELINES * 2
    assert [r.cell.choices["compile"] for r in found] == ["none"] * 6 + ["reduce_overhead"] * 6
    for request in found:
        recipe, workload = request.cell.recipe, request.cell.workload
        assert (recipe.precision.dtype, recipe.layout.components) == ("float16", ("denoiser",))  # type: ignore[attr-defined]
        assert (recipe.attention.kind, recipe.scheduler.kind) == ("none", "none"), "what diffusers chooses itself"
        assert workload.batch_size == 4
        if request.cell.choices["compile"] != "none":
            step: Any = recipe.compile
            assert (step.mode, step.fullgraph, step.components) == ("reduce-overhead", True, ("denoiser",))
    workloads = [request.cell.workload for request in found[:6]]
    assert {w.prompts for w in workloads[:4]} == {(FANTASY,)}
    assert [(w.height, w.width, w.steps) for w in workloads[:4]] == [(512, 512, 50)] * 4
    assert workloads[4].prompts == ("the blue hulk",)
    assert (workloads[4].steps, [stage.steps for stage in workloads[4].later_stages]) == (100, [50, 75])
    assert (workloads[5].height, workloads[5].steps) == (1024, 50)


def test_a_batch_of_sdxl_decodes_picture_by_picture_unless_told_otherwise() -> None:
    sliced = [
        (request.cell.choices["model"], request.cell.workload.batch_size)
        for request in swept("hardware=t4", "compile=none")
        if request.cell.choices["vae"] == "slicing"
    ]
    assert sliced == [("sdxl", 4), ("sdxl", 16)]
    assert {r.cell.choices["vae"] for r in swept("hardware=t4", "vae=default", "model=sdxl")} == {"default"}
    others = swept("hardware=t4", "model=sd35_medium", "workload=auto")
    assert {request.cell.choices["vae"] for request in others} == {"default"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("amend: [{where: {}, choose: {vae: slicing}}]", "amend"),
        ("amend: [{where: {compile: none}}]", "choose"),
        ("amend: [{where: {compile: none}, choose: {compile: default}}]", "amend chooses 'compile'"),
        ("amend: [{where: {compil: none}, choose: {vae: slicing}}]", "neither a group nor a key"),
        ("amend: [{where: {compile: none}, choose: {vae: sliced}}]", "no option 'sliced'"),
    ],
)
def test_a_bad_amendment_is_explained(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(f"axes: {{compile: [none, default]}}\n{text}\n")
    with pytest.raises(UsageError, match=said):
        compose_requests(["sweep=mine"], multirun=True, folders=[tmp_path])


def test_the_last_amendment_counts(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(
        "axes: {compile: [none, default]}\n"
        "amend:\n"
        "  - {where: {compile: none}, choose: {workload.steps: 3, workload.seed: 5}}\n"
        "  - {where: {workload.batch_size: 1, compile: none}, choose: {workload.steps: 4}}\n"
    )
    found = compose_requests(["sweep=mine"], multirun=True, folders=[tmp_path])
    assert [(r.cell.workload.steps, r.cell.workload.seed) for r in found] == [(4, 5), (20, 0)]


def test_the_protocol_of_the_page_stands_beside_ours() -> None:
    found = swept(
        "hardware=a100", "model=sd15", "workload=txt2img", "workload.batch_size=1", "measure=standard,pytorch2"
    )
    assert [(r.cell.choices["measure"], r.cell.choices["compile"]) for r in found] == [
        ("standard", "none"),
        ("pytorch2", "none"),
        ("standard", "reduce_overhead"),
        ("pytorch2", "reduce_overhead"),
    ]
    measure = found[1].cell.measure
    assert 1 + measure.warmup + 1 == 3, "the first sample is the third call"
    assert (measure.samples, measure.max_samples, measure.seconds) == (2, 2, 0.0)


def documented() -> list[str]:
    """The overrides of the small matrix, as the sweep's own YAML gives them."""
    text = (shipped_conf() / "sweep" / "pytorch2.yaml").read_text(encoding="utf-8")
    found = re.search(r"^#   diffopt run -m (.*)$", text, re.MULTILINE)
    assert found is not None
    return found[1].split()


def test_the_small_matrix_of_its_yaml_has_the_same_shape() -> None:
    found = compose_requests([*documented(), "hardware=cpu"], multirun=True)
    assert len(found) == 36
    shape = {(r.cell.workload.task, r.cell.workload.batch_size, r.cell.choices["compile"]) for r in found}
    assert len(shape) == 4 * 3 * 2, "text to image three times: Stable Diffusion, the cascade and SDXL"


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """The command of the small matrix, one batch size; what is compiled is only captured, in one whole graph."""
    (tmp_path / "conf" / "compile").mkdir(parents=True)
    (tmp_path / "conf" / "compile" / "capture.yaml").write_text("defaults: [default, _self_]\nbackend: eager\n")
    words = [*documented(), "hardware=cpu", "workload.batch_size=1", "compile=none,capture", "measure.max_variation=10"]
    return [sys.executable, "-m", "diffopt", "run", "-m", *words]


@pytest.mark.slow
def test_the_matrix_runs_whole_is_killed_and_goes_on(tmp_path: Path, small: list[str]) -> None:
    path = tmp_path / "studies" / "small"
    parent = subprocess.Popen(small, cwd=tmp_path, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 240
    while len(list(path.glob("cells/*/*/result.json"))) < 2:
        assert parent.poll() is None
        assert time.monotonic() < until
        time.sleep(0.2)
    parent.kill()
    parent.communicate()
    before = {row.cell_id for row in Study.open(path).results()}
    assert 2 <= len(before) < 12
    done = subprocess.run(small, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("(kept)") == len(before)
    rows = Study.open(path).results()
    assert [(row.status, row.reason) for row in rows] == [("ok", None)] * 12
    stages = {row.choices["model"]: len(row.metrics.stages) for row in rows}
    assert stages.pop("deepfloyd_if") == 3
    assert set(stages.values()) == {1}
    for row in rows:
        graphs = [effect for effect in row.effects if effect.group == "compile"]
        assert len(graphs) == (0 if row.choices["compile"] == "none" else len(row.metrics.stages))
    report = [sys.executable, "-m", "diffopt", "report", "small", "--like", "pytorch2"]
    page = subprocess.run(report, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=True).stdout
    lines = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    pipelines = ("SD - txt2img", "SD - img2img", "SD - inpaint", "SD - controlnet", "IF", "SDXL - txt2img")
    assert "(batch size: 1)" in page
    assert [line[0].removeprefix("| ").split(" (")[0] for line in lines[1:]] == list(pipelines)
    assert [text.count(" / <br>") for text in lines[5][1:]] == [2, 2]
    figures = [text.strip(" |") for line in lines[1:] if "IF" not in line[0] for text in line[1:]]
    assert all(float(text) > 0 for text in figures)
