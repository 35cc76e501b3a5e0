"""`diffopt check` as a process: it names each step with its effect, and the first that has none."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.places import REPO

from diffopt.config import Composer
from diffopt.config.smoke import Smokes
from diffopt.errors import UsageError

Run = Callable[..., subprocess.CompletedProcess[str]]
FAULTY = {"PYTHONPATH": f"{REPO}:{REPO / 'tests' / 'support' / 'faulty_steps'}"}
CPU = "hardware=cpu"


@pytest.mark.slow
def test_a_recipe_passes_step_by_step_and_a_step_for_a_gpu_is_told_apart(diffopt: Run) -> None:
    done = diffopt("check", "recipe=pytorch2", "model=sd15", "precision=bf16", "attention=flash2", CPU)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *lines, last = done.stdout.splitlines()
    assert first == "pytorch2 x sd15 (tiny weights, txt2img, cpu)"
    told = [line.split(":")[0].split() for line in lines]
    assert told == [
        ["not", "run", "attention=flash2"],
        ["ok", "precision=bf16"],
        ["ok", "memory=resident"],
        ["ok", "layout=channels_last"],
        ["ok", "compile=reduce_overhead"],
    ]
    assert "works on cuda only" in lines[0]
    assert lines[-1].endswith("1 graphs, 0 graph breaks (captured; --compile generates code)")
    assert last == "1 checked: 1 ok, 0 failed, 0 refused"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        pytest.param("noop", "no effect: nothing is in another layout", marks=pytest.mark.slow),
        pytest.param("sigkill", "it was killed by SIGKILL", marks=pytest.mark.slow),
        pytest.param("refuses", "this pipeline has no layout", marks=pytest.mark.slow),
        pytest.param("raises", "KeyError: 'conv_in'", marks=pytest.mark.slow),
    ],
)
def test_the_step_that_does_nothing_is_named_and_those_after_it_are_not_tried(
    diffopt: Run, tmp_path: Path, kind: str, said: str
) -> None:
    (tmp_path / "conf" / "layout").mkdir(parents=True)
    (tmp_path / "conf" / "layout" / "faulty.yaml").write_text(f"kind: {kind}\n")
    done = diffopt("check", "layout=faulty", "scheduler=ddim", CPU, env=FAULTY)
    assert done.returncode == 1, done.stdout + done.stderr
    *_, failing, last = done.stdout.splitlines()
    begins = "  refused  " if kind == "refuses" else "  FAILS    "
    assert failing.startswith(begins + ("the process: " if kind == "sigkill" else "layout=faulty: "))
    assert said in failing
    counts = "0 failed, 1 refused" if kind == "refuses" else "1 failed, 0 refused"
    assert last == f"1 checked: 0 ok, {counts}"
    assert "scheduler=ddim" not in done.stdout


@pytest.mark.slow
def test_values_that_are_not_finite_fail_and_name_the_step(diffopt: Run, tmp_path: Path) -> None:
    (tmp_path / "conf" / "layout").mkdir(parents=True)
    (tmp_path / "conf" / "layout" / "faulty.yaml").write_text("kind: spoils\n")
    done = diffopt("check", "layout=faulty", CPU, env=FAULTY)
    assert done.returncode == 1, done.stdout + done.stderr
    says = "values are not finite from denoising step 1 on: they are so since layout=faulty, and finite with "
    assert f"FAILS    calling: {says}precision=fp32 memory=resident" in done.stdout


@pytest.mark.slow
def test_files_are_checked_one_after_the_other_at_the_tiny_size(diffopt: Run, tmp_path: Path) -> None:
    """Whatever they were written for; one that no device can run fails."""
    for name, words in {
        "xl": ("model=sdxl", "recipe=pytorch2", "hardware=a100"),
        "if": ("model=deepfloyd_if", "precision=fp16", "hardware=a100"),
        "odd": ("model=sd15", "cache=pab", CPU),
    }.items():
        (tmp_path / f"{name}.yaml").write_text(diffopt("show", *words).stdout)
    done = diffopt("check", "--recipe", "xl.yaml", "if.yaml", "odd.yaml", "memory=resident")
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("odd.yaml: refused by its plan: cache=pab x model=sd15")
    assert [line for line in lines if not line.startswith(" ")][1:3] == [
        "xl.yaml (tiny weights, txt2img, cpu)",
        "if.yaml (tiny weights, txt2img, cpu)",
    ]
    assert lines[-1] == "3 checked: 2 ok, 0 failed, 1 refused"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=hub", "model.id=org/name"], "model=hub is not one of the built-in families"),
        (["recipe=nope"], "nope"),
        (["--all", "model=sdxl"], "leave --recipe, recipe= and model= out"),
        (["--recipe", "nowhere.yaml"], "there is no such file"),
    ],
)
def test_wrong_usage_is_one_paragraph(cli: Callable[..., tuple[int, str, str]], words: list[str], said: str) -> None:
    code, out, err = cli("check", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def smoke(*words: str, **settings: bool):
    return Smokes(Composer(), **settings).make([*words, CPU])


def test_what_is_checked_is_the_recipe_on_the_familys_tiny_weights() -> None:
    found = smoke("recipe=accelerate_inference", "model=sdxl")
    cell = found.plan.cell
    assert (cell.recipe.model.weights, cell.workload.height, cell.workload.steps) == ("tiny", 64, 2)
    assert cell.recipe.compile.backend == "eager"
    assert found.captured
    typed = smoke("model=sdxl", "workload.height=128")
    assert (typed.plan.cell.workload.height, typed.plan.cell.workload.width) == (128, 64)
    assert smoke("model=tiny").plan.cell.recipe.model.weights == "pretrained", "it is small as it is"
    real = smoke("recipe=pytorch2", "model=sdxl", compile_code=True)
    assert (real.plan.cell.recipe.compile.backend, real.captured) == ("inductor", False)


def test_what_no_device_can_run_is_refused_and_what_a_gpu_can_is_not() -> None:
    assert "has no enable_cache" in smoke("model=sd15", "cache=pab").refused[0]
    found = smoke("model=sd15", "quant=int4_weight", "precision=bf16")
    assert found.refused == ()
    assert list(found.not_run) == ["quant=int4_weight"]
    assert found.plan.cell.recipe.quant.kind == "none"


def test_every_model_but_those_of_the_user_is_gone_through() -> None:
    composer = Composer()
    assert set(Smokes(composer).families()) == set(composer.options("model")) - {"local", "hub"}
    with pytest.raises(UsageError, match="not one of the built-in"):
        smoke("model=local", "model.path=x")
