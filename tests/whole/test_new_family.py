"""The model family that CONTRIBUTING adds: its files, records and commands, in a copy of the repository."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from support.documents import INSIDE, INTO, copy_repository, insert_into, new_files, python_in
from support.places import REPO

from diffopt.models.resolve import PACKAGED

PAGE = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
FAMILY = "newcomer"
# That an option agrees with its configs, and records with the diffusers that is installed.
TESTS = (
    "tests/config/test_model_options.py",
    "tests/config/test_options.py",
    "tests/models/test_resolve.py",
    "tests/models/test_classes.py",
    "tests/steps/cache/test_blocks.py",
    "tests/steps/scheduler/test_sampler.py",
)
CHOSEN = f"{FAMILY} or OvisImage or known_in_full or has_one_record or of_a_model_option or denoisers_as_the_table_says"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with the family in it, as CONTRIBUTING adds it."""
    found = copy_repository(tmp_path_factory.mktemp("copy"))
    for place, commands in INSIDE.findall(PAGE):
        subprocess.run(["bash", "-euc", commands], cwd=found / place, check=True)
    for path, text in new_files().items():
        assert not (found / path).exists(), path
        (found / path).parent.mkdir(parents=True, exist_ok=True)
        (found / path).write_text(text, encoding="utf-8")
    for path, table, lines in INTO.findall(PAGE):
        insert_into(found, path, table, lines)
    return found


def test_it_is_one_yaml_one_folder_and_records() -> None:
    files = [path for path in new_files() if FAMILY in path]
    assert [path for path in files if path.startswith("conf/")] == [f"conf/model/{FAMILY}.yaml"]
    folder = f"diffopt/models/architectures/{FAMILY}/"
    assert all(path.startswith(folder) for path in files if not path.startswith("conf/"))
    assert [place for place, _ in INSIDE.findall(PAGE)] == ["diffopt/models/architectures"]
    records = {path.rpartition("/")[0] for path, _, lines in INTO.findall(PAGE) if "OvisImage" in lines}
    assert records == {"diffopt/models/classes"}


def listed() -> list[str]:
    """The files of an architecture's folder in CONTRIBUTING's table, as regular expressions."""
    table = PAGE.partition("The folder `diffopt/models/architectures/NAME`")[2].partition("\n\nParts")[0]
    names = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    assert "model_index.json" in names
    return [re.sub("PART|TOKENIZER", r"\\w+", name.replace("scheduler/", r"\w*scheduler/")) for name in names]


@pytest.mark.parametrize("name", sorted(path.parents[1].name for path in PACKAGED.glob("*/tiny/model_index.json")))
def test_every_folder_has_the_files_that_are_listed(name: str) -> None:
    found = {str(path.relative_to(PACKAGED / name)) for path in (PACKAGED / name).rglob("*") if path.is_file()}
    kinds = listed()
    for file in found:
        plain = file if file == "tiny/tiny.yaml" else file.removeprefix("tiny/")
        assert any(re.fullmatch(kind, plain) for kind in kinds), file
        assert file == plain or plain in found or file == "tiny/tiny.yaml", f"{file} has none beside it at full size"
    assert [kind for kind in kinds if not any(re.fullmatch(kind, file) for file in found)] == []


@pytest.mark.slow
def test_the_tests_of_models_and_records_pass_with_it(copy: Path) -> None:
    done = python_in(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, "-k", CHOSEN)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    (passed,) = re.findall(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert int(passed) > 30


@pytest.mark.slow
def test_it_is_planned_at_full_size_and_runs_at_a_million_parameters(copy: Path, tmp_path: Path) -> None:
    words = (f"model={FAMILY}", "model.weights=random", "hardware=h100", "precision=bf16", "compile=regional")
    planned = python_in(copy, "-m", "diffopt", "plan", *words, "--json", cwd=tmp_path)
    (cell,) = json.loads(planned.stdout)["cells"]
    assert cell["status"] == "ok", cell
    words = (
        f"model={FAMILY}",
        "model.weights=tiny",
        "hardware=cpu",
        "measure=quick",
        "measure.max_variation=10",
        "quant=int8_weight",
        "fuse=qkv",
    )
    ran = python_in(copy, "-m", "diffopt", "run", *words, "study=x", cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
