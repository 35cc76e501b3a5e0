"""A user's own model option extends a shipped one; each test is the real command in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from diffopt.config import Composer, catalogue
from diffopt.recipe.options import shipped_option
from diffopt.schema.model import Model

Run = Callable[..., CompletedProcess[str]]
TUNED = "# our fine-tune of SDXL\ndefaults: [sdxl, _self_]\nid: ours/sdxl-tuned\n"


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """The folder of the user's own model options."""
    folder = tmp_path / "conf" / "model"
    folder.mkdir(parents=True)
    return folder


def shown(diffopt: Run, *words: str) -> dict[str, Any]:
    done = diffopt("show", "hardware=h100", *words)
    assert done.returncode == 0, done.stderr
    model: dict[str, Any] = yaml.safe_load(done.stdout)["recipe"]["model"]
    return model


def test_a_fine_tune_changes_the_id_and_nothing_else(diffopt: Run, conf: Path) -> None:
    (conf / "tuned.yaml").write_text(TUNED)
    mine, theirs = shown(diffopt, "model=tuned"), shown(diffopt, "model=sdxl")
    assert mine == {**theirs, "id": "ours/sdxl-tuned"}
    words = ("-m", "model=tuned,sdxl", "model.weights=pretrained,random", "hardware=h100", "--json")
    cells = json.loads(diffopt("plan", *words).stdout)["cells"]
    assert [cell["status"] for cell in cells] == ["ok"] * 4
    assert len({cell["cell_id"] for cell in cells}) == 4
    assert "our fine-tune of SDXL" in diffopt("ls", "model").stdout


def test_a_fine_tune_of_a_fine_tune(diffopt: Run, conf: Path) -> None:
    """What is nested is merged, lists are replaced, null takes away."""
    (conf / "tuned.yaml").write_text(TUNED)
    changed = "call: {clean_caption: false}\npipelines: {inpaint: null}\nhead_sizes: [64, 128]\nvariant: null\n"
    (conf / "small.yaml").write_text(f"# smaller\ndefaults: [tuned, _self_]\nname: small\nheight: 512\n{changed}")
    mine, theirs = Model.from_plain(shown(diffopt, "model=small")), shipped_option("model", "sdxl")
    assert (mine.name, mine.id, mine.variant, mine.height, mine.width) == ("small", "ours/sdxl-tuned", None, 512, 1024)
    assert (mine.head_sizes, mine.call.clean_caption) == ((64, 128), False)
    assert mine.pipelines.tasks == ("txt2img", "img2img")
    assert mine.pipelines.txt2img == theirs["pipelines"]["txt2img"]


@pytest.mark.parametrize("option", ["tuned", "below"])
def test_a_sibling_that_there_is_not_is_told_with_the_one_that_is_meant(diffopt: Run, conf: Path, option: str) -> None:
    file = conf / "tuned.yaml"
    file.write_text(TUNED.replace("[sdxl", "[sdlx"))
    (conf / "below.yaml").write_text("# extends one that is broken\ndefaults: [tuned, _self_]\nheight: 512\n")
    done = diffopt("plan", f"model={option}", "hardware=h100")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"diffopt: {file}: its defaults extend 'sdlx', and the group 'model' has no option of that")
    assert "Did you mean sdxl? Its options are " in line


def test_an_option_that_is_broken_hides_no_other(conf: Path) -> None:
    (conf / "tuned.yaml").write_text(TUNED.replace("[sdxl", "[sdlx"))
    here = {row.option: row.here for row in catalogue.list_options(Composer([conf.parent]), "model")}
    assert here["tuned"].startswith(f"broken: {conf / 'tuned.yaml'}: its defaults extend 'sdlx', and ")
    assert [option for option, said in here.items() if "broken" in said] == ["tuned"]


def test_a_recipe_that_chooses_an_option_that_there_is_not(diffopt: Run, tmp_path: Path) -> None:
    (tmp_path / "conf" / "recipe").mkdir(parents=True)
    (tmp_path / "conf" / "recipe" / "exact.yaml").write_text("# exact\ndefaults: [{override /attention: mth}]\n")
    done = diffopt("plan", "recipe=exact", "hardware=cpu")
    assert done.returncode == 2
    assert "attention=mth: the group 'attention' has no option 'mth'. Did you mean math?" in done.stderr
