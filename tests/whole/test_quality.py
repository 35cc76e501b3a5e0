"""The built-in model, cell by cell as a user measures them: what keeps its pictures and what harms them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.places import REPO

from diffopt.results.result import Result

DAMAGING = REPO / "tests" / "support" / "damaging_steps"
ASKED = ("quality=fast", "measure=quick", "measure.samples=2", "measure.max_variation=9", "workload.steps=8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of all the cells, and the options of the steps that harm pictures."""
    found = tmp_path_factory.mktemp("quality")
    options = found / "conf" / "layout"
    options.mkdir(parents=True)
    for kind in ("four_bits", "noise_of_a_tenth", "not_a_number"):
        (options / f"{kind}.yaml").write_text(f"# harms pictures\nkind: {kind}\n")
    for words in (
        ("layout=default,four_bits,noise_of_a_tenth,not_a_number",),
        ("attention=vanilla,math",),
        ("compile=default",),
        ("fuse=qkv",),
        ("precision=bf16",),
        ("quant=int8_dynamic",),
    ):
        diffopt(found, "run", "-m", "study=s", "hardware=cpu", *ASKED, *words)
    return found


def diffopt(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": f"{REPO}:{DAMAGING}"}
    command = [sys.executable, "-P", "-m", "diffopt", *words]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)


def rows_of(folder: Path) -> list[Result]:
    """Read as they are written: this process does not know the steps of the other package."""
    files = (folder / "studies" / "s" / "cells").glob("*/*/result.json")
    return [Result.model_validate_json(file.read_text()) for file in files]


def row(folder: Path, **choices: str) -> Result:
    rows = rows_of(folder)
    plain = {"layout": "default", "attention": "auto", "compile": "none", "fuse": "none", "quant": "none"}
    wanted = {**plain, "precision": "fp32", **choices}
    (found,) = [row for row in rows if all(row.choices[group] == name for group, name in wanted.items())]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choices", "verdicts"),
    [
        ({}, ["identical"]),
        ({"fuse": "qkv"}, ["identical", "within noise"]),
        ({"attention": "vanilla"}, ["identical", "within noise"]),
        ({"attention": "math"}, ["identical", "within noise"]),
        ({"compile": "default"}, ["identical", "within noise"]),
        ({"precision": "bf16"}, ["within noise"]),
        ({"quant": "int8_dynamic"}, ["close"]),
        ({"layout": "four_bits"}, ["changed"]),
        ({"layout": "noise_of_a_tenth"}, ["broken"]),
    ],
    ids=str,
)
def test_a_cell_has_its_verdict(folder: Path, choices: dict[str, str], verdicts: list[str]) -> None:
    found = row(folder, **choices)
    assert found.status == "ok", found.reason
    assert found.quality is not None
    assert found.quality.verdict in verdicts, found.quality.because
    if found.quality.verdict != "broken":
        assert found.quality.accuracy == found.quality.accuracy_of_reference == 1.0


@pytest.mark.slow
def test_a_reference_drawn_twice_has_no_distance_and_that_is_no_floor(folder: Path) -> None:
    found = row(folder).quality
    assert found is not None
    assert found.distance is not None
    assert found.is_reference
    assert (found.distance.equal, found.distance.flip.worst, found.distance.latents_error.worst) == (4, 0, 0)
    said = diffopt(folder, "report", "s").stdout
    assert "the reference's row was drawn anew by another process: its distance is no floor" in said


@pytest.mark.slow
def test_what_is_not_a_number_is_not_valid(folder: Path) -> None:
    found = row(folder, layout="not_a_number")
    assert not found.valid
    assert found.reason is not None
    assert "not finite" in found.reason
    assert found.quality is not None
    assert found.quality.verdict == "broken"
    assert found.quality.because == "the latents are not finite in picture 0, 1, 2, 3"


@pytest.mark.slow
def test_all_cells_have_one_reference_which_was_drawn_once(folder: Path) -> None:
    drawings = sorted((folder / "studies" / "s" / "drawings").glob("*/*/drawing.json"))
    assert len(drawings) == 3  # the reference, with another attention, in bfloat16
    references = {found.reference for row in rows_of(folder) if (found := row.quality)}
    assert len(references) == 1


@pytest.mark.slow
def test_a_single_run_that_is_worse_than_accepted_ends_with_1(folder: Path) -> None:
    words = ("run", "study=s", "hardware=cpu", *ASKED, "quant=int8_dynamic")
    assert diffopt(folder, *words, "quality.require=high").returncode == 0
    done = diffopt(folder, *words, "quality.require=lossless")
    assert (done.returncode, "ok, rejected" in done.stdout) == (1, True), done.stderr


@pytest.mark.slow
def test_the_sheet_shows_damage_in_its_order(folder: Path) -> None:
    done = diffopt(folder, "report", "s", "--pictures", "sheet.png")
    assert done.returncode == 0, done.stderr
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width == 816
        assert sheet.height > 8 * 256
