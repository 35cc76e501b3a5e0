"""The wheel, installed into another environment and used from another directory, as a stranger would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.places import REPO

Command = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow


def check(*words: str | Path, **options: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    check(sys.executable, "-m", "build", "--wheel", "--outdir", folder, REPO)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """`diffopt` of a fresh environment with the wheel in it."""
    venv = tmp_path_factory.mktemp("other") / "venv"
    check(sys.executable, "-m", "venv", venv)
    pip = (venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-compile")
    check(*pip, "-c", REPO / "constraints.txt", wheel)
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def call(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [venv / "bin" / "diffopt", *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
        )

    return call


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's directory with a recipe and an option of their own."""
    for name, text in {
        "recipe/mine": "# my recipe\ndefaults: [pytorch2, {override /compile: mine}, _self_]\nworkload: {steps: 2}\n",
        "compile/mine": "# my compile\ndefaults: [regional, _self_]\nfullgraph: false\n",
    }.items():
        path = tmp_path / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path


def test_what_the_wheel_holds(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wheel.name.startswith("diffopt_toolkit-")
    assert {f"diffopt/conf/{path.relative_to(REPO / 'conf')}" for path in REPO.glob("conf/**/*.yaml")} <= names
    assert "diffopt/models/architectures/tiny/unet/diffusion_pytorch_model.safetensors" in names
    assert not [name for name in names if name.startswith(("tests/", "conf/", "scripts/"))]
    tree = re.findall(r"^\| `(\w+)` \|", (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    files = ("__init__.py", "__main__.py", "api.py", "errors.py", "version.py", "py.typed")
    inside = {name.split("/")[1] for name in names if name.startswith("diffopt/")}
    assert inside <= {*tree, *files, "conf", "constraints.txt"}, "the product alone"
    assert "diffopt/constraints.txt" in names, "what was tested, for the doctor"


def test_the_users_own_options_and_recipes(command: Command, project: Path) -> None:
    done = command("plan", "recipe=mine", "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads(done.stdout)["cells"]
    assert cell["choices"]["compile"] == "mine"
    assert cell["choices"]["precision"] == "fp16"
    assert "my compile" in command("ls", "compile", cwd=project).stdout
    shown = command("show", "recipe=mine", cwd=project).stdout
    (project / "lock.yaml").write_text(shown)
    again = command("plan", "--recipe", "lock.yaml", "--json", cwd=project)
    assert json.loads(again.stdout)["cells"][0]["cell_id"] == cell["cell_id"]


@pytest.mark.parametrize("choice", ["none", "max_autotune"])
@pytest.mark.parametrize("sweep", [(), ("-m",)])
def test_the_command_line_beats_the_overlay(
    command: Command, project: Path, choice: str, sweep: tuple[str, ...]
) -> None:
    done = command("plan", *sweep, "recipe=pytorch2", f"compile={choice}", "--json", cwd=project)
    (cell,) = json.loads(done.stdout)["cells"]
    kinds = [step["kind"] for step in cell["steps"] if step["group"] == "compile"]
    assert kinds == ([] if choice == "none" else ["full"])
    assert cell["choices"]["compile"] == choice


def test_a_real_run_from_another_directory(command: Command, project: Path) -> None:
    words = ("workload.steps=1", "measure=quick", "measure.max_variation=10", "attention=sdpa", "study=s")
    done = command("run", *words, cwd=project)
    assert done.returncode == 0, done.stderr
    (path,) = project.glob("studies/s/cells/*/*/result.json")
    row = json.loads(path.read_text())
    assert row["status"] == "ok"
    assert (path.parent / row["artifacts"]["pictures"][0]).is_file()
    assert sorted(entry.name for entry in project.iterdir()) == ["conf", "studies"], "no outputs/ is left behind"
