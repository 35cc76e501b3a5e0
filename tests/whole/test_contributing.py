"""The worked examples of CONTRIBUTING.md and README.md, run exactly as they stand there."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from support.places import REPO

from diffopt.models.resolve import PACKAGED

FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)

Run = Callable[..., CompletedProcess[str]]


def examples(document: str) -> dict[str, str]:
    return dict(FILE.findall((REPO / document).read_text(encoding="utf-8")))


@pytest.fixture
def written(tmp_path: Path) -> dict[str, str]:
    """The example files in a user's working directory; Python ones as an installed distribution."""
    found = {**examples("CONTRIBUTING.md"), **examples("README.md")}
    for name, text in found.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    info = tmp_path / "example_steps-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example-steps\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[diffopt.steps]\nint5 = int5\n")
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPO)])}


def test_an_attention_backend_is_one_yaml(diffopt: Run, written: dict[str, str]) -> None:
    words = ("attention=sage_triton", "precision=fp16")
    plan = json.loads(diffopt("plan", *words, "hardware=a100", "--json", env=written).stdout)["cells"][0]
    assert plan["status"] == "ok"
    assert {"order": "attention", "group": "attention", "kind": "dispatch"} in plan["steps"]
    for gpu in ("cpu", "t4"):
        plan = json.loads(diffopt("plan", *words, f"hardware={gpu}", "--json", env=written).stdout)["cells"][0]
        assert plan["status"] == "refused"
        assert plan["reasons"][0].startswith(f"attention=sage_triton x hardware={gpu}: ")
    assert "SageAttention's Triton kernel" in diffopt("ls", "attention", env=written).stdout


@pytest.mark.slow
def test_a_variant_extends_its_sibling_and_runs(diffopt: Run, written: dict[str, str]) -> None:
    done = diffopt("run", "attention=math_everywhere", "measure=quick", "study=x", "workload.steps=1", env=written)
    assert done.returncode == 0, done.stderr
    assert "2 cells" not in done.stderr
    (effect,) = _effects(written, "attention")
    assert "attention modules of vae call _native_math" in effect["summary"]


@pytest.mark.slow
def test_a_quantizer_is_one_class_and_one_yaml(diffopt: Run, written: dict[str, str]) -> None:
    assert "a study of how few bits" in diffopt("ls", "quant", env=written).stdout
    done = diffopt("run", "quant=int5_weight", "measure=quick", "study=x", "workload.steps=1", env=written)
    assert done.returncode == 0, done.stderr
    (effect,) = _effects(written, "quant")
    assert effect["numbers"]["unet"] > 10


@pytest.mark.slow
def test_a_model_is_one_yaml(diffopt: Run, written: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(PACKAGED / "tiny", tmp_path / "pipelines/house_style")
    assert "house_style" in diffopt("ls", "model", env=written).stdout
    done = diffopt("run", "model=house_style", "workload=img2img", "measure=quick", "study=x", env=written)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_readmes_own_recipe_runs(diffopt: Run, written: dict[str, str]) -> None:
    done = diffopt("run", "recipe=exact", "measure=quick", "study=x", env=written)
    assert done.returncode == 0, done.stderr
    (effect,) = _effects(written, "attention")
    assert "unet call _native_math" in effect["summary"]


def test_the_readmes_table_of_groups_is_complete() -> None:
    from diffopt.config import Composer
    from diffopt.config import catalogue as listing

    readme = (REPO / "README.md").read_text(encoding="utf-8")
    for group, options in listing.groups(Composer()):
        line = next(line for line in readme.splitlines() if line.startswith(f"| `{group}` |"))
        assert [word.strip("`, ") for word in line.split("|")[3].split()] == options, group


def shown(command: str) -> str:
    """What README shows below a command."""
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"```console\n\$ diffopt {re.escape(command)}\n(.*?)```", readme, re.DOTALL)
    assert found is not None, command
    return found[1]


@pytest.mark.parametrize("command", ["ls compile", "plan model=sdxl hardware=t4 recipe=accelerate_inference"])
def test_the_readme_shows_what_is_printed(diffopt: Run, command: str) -> None:
    assert diffopt(*command.split()).stdout == shown(command)


def test_the_rows_of_the_readme_are_cells_of_its_sweep(diffopt: Run) -> None:
    words = "-m compile=none,regional quant=none,int8_dynamic attention=sdpa,cudnn measure=quick study=first"
    planned = json.loads(diffopt("plan", *words.split(), "hardware=cpu", "--json").stdout)["cells"]
    rows = [line.split()[0] for line in shown(f"run {words}").splitlines()[1:]]
    assert rows == [cell["cell_id"] for cell in planned]
    with open(REPO / "docs" / "results" / "tour-cpu.csv", encoding="utf-8") as file:
        assert sorted(rows) == [row["cell_id"] for row in csv.DictReader(file)]  # as a study keeps them


def _effects(written: dict[str, str], group: str) -> list[dict[str, object]]:
    folder = Path(written["PYTHONPATH"].split(os.pathsep)[0])
    (path,) = folder.glob("studies/x/cells/*/*/result.json")
    return [effect for effect in json.loads(path.read_text())["effects"] if effect["group"] == group]


def test_the_documents_have_examples() -> None:
    assert set(examples("CONTRIBUTING.md")) == {
        "conf/attention/sage_triton.yaml",
        "conf/attention/math_everywhere.yaml",
        "conf/model/house_style.yaml",
        "conf/quant/int5_weight.yaml",
        "int5.py",
    }
