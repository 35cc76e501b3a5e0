"""A study that version 0.1.0 wrote before the packages: it still reports and resumes, and its cells read back.

``study_of_0_1_0`` is what these commands wrote on a CPU, without logs and claims; never to be made anew:

    diffopt run -m model=tiny quant=none,int8_dynamic attention=sdpa,cudnn measure=quick workload.steps=4 hardware=cpu
    diffopt run model=tiny_sdxl measure=quick workload.steps=2 hardware=cpu
    diffopt run -m model=tiny_deepfloyd_if compile=none,regional measure=quick workload.steps=2
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.places import TESTS

from diffopt.machine.environment import detect_environment
from diffopt.results.study import Study

OLD = TESTS / "results" / "study_of_0_1_0"
SWEEP = [
    "-m",
    "model=tiny",
    "quant=none,int8_dynamic",
    "attention=sdpa,cudnn",
    "measure=quick",
    "workload.steps=4",
    "hardware=cpu",
]
ROWS = {  # by cell: status, and a figure or a word of its row
    "8715f825d03f": ("ok", "0.1326"),
    "6c24c9359eb6": ("ok", "0.6939"),
    "64be96f42768": ("refused", "works on cuda only"),
    "8360eedfc743": ("refused", "works on cuda only"),
    "9d372b8f8fc6": ("ok", "0.098"),
    "56a51434be3b": ("ok", "0.435"),
    "118dcdf4e040": ("refused", "no blocks that repeat"),
}

Cli = Callable[..., tuple[int, str, str]]


def test_every_row_is_read_and_reported(cli: Cli) -> None:
    rows = {row.cell_id: row for row in Study.open(OLD).results()}
    assert {name: row.status for name, row in rows.items()} == {name: status for name, (status, _) in ROWS.items()}
    code, out, err = cli("report", str(OLD))
    assert (code, err) == (0, "")
    lines = {line.split("|")[1].strip(): line for line in out.splitlines() if line.count("|") > 2}
    assert {name for name, (status, says) in ROWS.items() if says in lines[name] and status in lines[name]} == {*ROWS}


@pytest.mark.parametrize("cell", sorted({*ROWS} - {"9d372b8f8fc6", "56a51434be3b", "118dcdf4e040"}))
def test_a_cell_reads_back_with_the_same_id(cli: Cli, cell: str) -> None:
    (file,) = OLD.glob(f"cells/{cell}/*/cell.yaml")
    code, out, err = cli("plan", "--recipe", str(file))
    assert (code, err) == (0, "")
    assert out.startswith(f"cell {cell}, ")


@pytest.mark.parametrize(("cell", "now"), [("9d372b8f8fc6", "sdxl"), ("118dcdf4e040", "deepfloyd_if_i_m")])
def test_a_cell_of_an_option_that_is_gone_says_what_it_is_now(cli: Cli, cell: str, now: str) -> None:
    (file,) = OLD.glob(f"cells/{cell}/*/cell.yaml")
    code, _, err = cli("plan", "--recipe", str(file))
    assert code == 2
    assert f"It is architecture={now} with model.weights=tiny now." in err


def test_the_same_sweep_goes_on_where_it_stopped(cli: Cli, tmp_path: Path) -> None:
    """Here, that is: in the environment that is this machine's."""
    asked = {"8715f825d03f", "6c24c9359eb6", "64be96f42768", "8360eedfc743"}
    place = detect_environment("cpu").id
    for cell in asked:
        (row,) = (OLD / "cells" / cell).iterdir()
        copy = tmp_path / "old" / "cells" / cell / place
        shutil.copytree(row, copy)
        text = (copy / "result.json").read_text()
        (copy / "result.json").write_text(text.replace(f'"env_id": "{row.name}"', f'"env_id": "{place}"'))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    code, out, err = cli("run", *SWEEP, "study=./old")
    assert code == 0, err
    assert err.count("(kept)") == len(asked) == len(before)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")} == before
    assert all(cell in out for cell in asked)
