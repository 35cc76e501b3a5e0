"""The worked examples of README, CONTRIBUTING and docs/, run exactly as they stand there."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess, run

import pytest
import yaml
from support.places import REPO

from diffopt.models.resolve import PACKAGED

FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)

PAGES = ("CONTRIBUTING.md", "docs/own-options.md", "docs/models.md")
QUICK = ("measure=quick", "measure.max_variation=10")  # what else the machine does is no mistake here
Run = Callable[..., CompletedProcess[str]]


def examples(document: str) -> dict[str, str]:
    return dict(FILE.findall((REPO / document).read_text(encoding="utf-8")))


@pytest.fixture
def written(tmp_path: Path) -> dict[str, str]:
    """The example files in a user's working directory; Python ones as an installed distribution."""
    found = {name: text for page in PAGES for name, text in examples(page).items()}
    for name, text in found.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    info = tmp_path / "example_steps-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example-steps\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[diffopt.steps]\nint5 = int5\nevery_nth = every_nth\n")
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
    done = diffopt("run", "attention=math_everywhere", *QUICK, "study=x", "workload.steps=1", env=written)
    assert done.returncode == 0, done.stderr
    assert "2 cells" not in done.stderr
    (effect,) = _effects(written, "attention")
    assert "attention modules of vae call _native_math" in effect["summary"]


@pytest.mark.slow
def test_a_quantizer_is_one_class_and_one_yaml(diffopt: Run, written: dict[str, str]) -> None:
    assert "a study of how few bits" in diffopt("ls", "quant", env=written).stdout
    done = diffopt("run", "quant=int5_weight", *QUICK, "study=x", "workload.steps=1", env=written)
    assert done.returncode == 0, done.stderr
    (effect,) = _effects(written, "quant")
    assert effect["numbers"]["unet"] > 10


def test_a_cache_inherits_the_conflicts_of_its_traits(diffopt: Run, written: dict[str, str]) -> None:
    words = ("-m", "cache=every_nth", "model=tiny,flux_dev", "compile=none,default", "hardware=h100", "--json")
    cells = json.loads(diffopt("plan", *words, env=written).stdout)["cells"]
    assert [cell["status"] for cell in cells] == ["ok", "refused", "refused", "refused"]
    assert [len(cell["reasons"]) for cell in cells] == [0, 1, 1, 2]
    assert cells[1]["reasons"][0].startswith("cache=every_nth x compile=default: ")
    assert cells[2]["reasons"][0].startswith("cache=every_nth x model=flux_dev: FluxTransformer2DModel may be called")


@pytest.mark.slow
def test_a_cache_is_one_class_and_one_yaml(diffopt: Run, written: dict[str, str]) -> None:
    words = ("cache=every_nth", "compile=regional", "compile.backend=eager", *QUICK, "workload.steps=5")
    done = diffopt("run", *words, "study=x", env=written)
    assert done.returncode == 0, done.stderr
    (effect,) = _effects(written, "cache")
    assert effect["summary"] == "2 of 5 denoiser calls were skipped"


@pytest.mark.slow
def test_a_cache_that_skips_nothing_is_found_out(diffopt: Run, written: dict[str, str]) -> None:
    done = diffopt("run", "cache=every_nth", *QUICK, "workload.steps=1", env=written)
    assert done.returncode == 1
    assert "cache (every_nth): no effect: cache=every_nth: no call of the denoiser was skipped" in done.stdout


@pytest.mark.slow
def test_a_model_is_one_yaml(diffopt: Run, written: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(PACKAGED / "tiny", tmp_path / "pipelines/house_style")
    assert "house_style" in diffopt("ls", "model", env=written).stdout
    done = diffopt("run", "model=house_style", "workload=img2img", *QUICK, "study=x", env=written)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_fine_tune_on_the_hub_is_one_yaml(diffopt: Run, written: dict[str, str]) -> None:
    words = ("-m", "model=house_xl,sdxl", "model.weights=pretrained,random", "hardware=h100", "--json")
    cells = json.loads(diffopt("plan", *words, env=written).stdout)["cells"]
    assert [cell["status"] for cell in cells] == ["ok"] * 4
    said = [text for text in map(str, cells[:2]) if "not pinned" in text]
    assert said == [], "its revision is a commit"
    shown = yaml.safe_load(diffopt("show", "model=house_xl", "hardware=h100", env=written).stdout)["recipe"]["model"]
    other = yaml.safe_load(diffopt("show", "model=sdxl", "hardware=h100", env=written).stdout)["recipe"]["model"]
    differs = {key for key in shown if shown[key] != other[key]}
    assert differs == {"name", "id", "revision", "variant", "licence", "steps"}


@pytest.mark.slow
def test_a_recipe_of_ones_own_runs(diffopt: Run, written: dict[str, str]) -> None:
    done = diffopt("run", "recipe=exact", *QUICK, "study=x", env=written)
    assert done.returncode == 0, done.stderr
    (effect,) = _effects(written, "attention")
    assert "unet call _native_math" in effect["summary"]


def test_the_table_of_groups_is_complete() -> None:
    from diffopt.config import Composer, catalogue

    page = (REPO / "docs/options.md").read_text(encoding="utf-8")
    readme = (REPO / "README.md").read_text(encoding="utf-8").partition("## Groups")[2].partition("##")[0]
    groups = dict(catalogue.list_groups(Composer()))
    for group, options in groups.items():
        line = next(line for line in page.splitlines() if line.startswith(f"| `{group}` |"))
        assert [word.strip("`, ") for word in line.split("|")[3].split()] == list(options), group
    named = [
        name
        for line in readme.splitlines()
        for name in re.findall(r"`(\w+)`", line.split("|")[1] if "|" in line else "")
    ]
    assert sorted(named) == sorted(groups)


def shown(command: str, document: str = "README.md") -> str:
    """What a document shows below a command."""
    text = (REPO / document).read_text(encoding="utf-8")
    found = re.search(rf"```console\n\$ diffopt {re.escape(command)}\n(.*?)```", text, re.DOTALL)
    assert found is not None, command
    return found[1]


@pytest.mark.parametrize(
    ("document", "command"),
    [("docs/compile.md", "ls compile"), ("README.md", "plan model=sdxl hardware=t4 recipe=accelerate_inference")],
)
def test_a_document_shows_what_is_printed(diffopt: Run, document: str, command: str) -> None:
    assert diffopt(*command.split()).stdout == shown(command, document)


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    code = code.replace('"DIR"', repr(str(PACKAGED / "tiny"))) + "print(image.size, mine.diffopt.attention.kind)\n"
    done = run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^ok [\d.]+$", done.stdout, re.MULTILINE)) == 2
    assert done.stdout.endswith("(64, 64) dispatch\n")


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
        "conf/cache/every_nth.yaml",
        "conf/attention/math_everywhere.yaml",
        "conf/model/house_style.yaml",
        "conf/quant/int5_weight.yaml",
        "every_nth.py",
        "int5.py",
    }
    assert set(examples("docs/models.md")) == {"conf/model/house_xl.yaml"}
    assert set(examples("docs/own-options.md")) == {
        "conf/attention/math_denoiser.yaml",
        "conf/recipe/exact.yaml",
        "conf/sweep/two_sizes.yaml",
    }
