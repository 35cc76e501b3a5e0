"""A model that is named by its folder or as ORG/NAME of the hub, and the memory that a plan for this machine has."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from diffopt.config.composer import Composer
from diffopt.config.meant import with_models_as_options
from diffopt.config.resolve import compose_requests
from diffopt.machine import nvml
from diffopt.machine.hardware import GIB
from diffopt.models.resolve import PACKAGED
from diffopt.recipe.plan import make_plan

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(PACKAGED / "tiny", tmp_path / "my model"))


def test_a_folder_is_model_local(folder: Path, cli: Cli) -> None:
    asked = compose_requests(["model='my model'"])[0].cell
    assert asked.id == compose_requests(["model=local", "model.path='my model'"])[0].cell.id
    assert asked.choices["model"] == "local"
    folder.rename("mine")
    points = compose_requests(["model=tiny,./mine"], multirun=True)
    assert [point.cell.choices["model"] for point in points] == ["tiny", "local"]
    code, out, err = cli("plan", "model=mine", "precision=bf16")
    assert (code, err) == (0, "")
    assert "model local on cpu, txt2img" in out


def test_a_name_of_the_hub_is_model_hub() -> None:
    words = ["quant=none", "model=org/Some-Model.1", "model.revision=abc"]
    options = Composer().options("model")
    assert with_models_as_options(words, options) == [
        "quant=none",
        "model=hub",
        "model.id=org/Some-Model.1",
        "model.revision=abc",
    ]
    composed = Composer().compose(words)
    assert (composed.choices["model"], composed.data["model"]["id"]) == ("hub", "org/Some-Model.1")


def test_neither_is_said_without_a_list_of_names(cli: Cli) -> None:
    code, _, err = cli("plan", "model=./nowhere")
    assert code == 2
    assert "model=./nowhere: that is no folder with a model_index.json, and no ORG/NAME of the hub." in err
    assert "sd15" not in err


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "detect_gpus", lambda: ())
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 24 * GIB // 4096}.__getitem__)


@pytest.mark.usefixtures("small_machine")
def test_the_memory_of_this_machine_bounds_what_it_is_asked_for() -> None:
    (refused,) = make_plan(compose_requests(["model=flux_dev"])[0].cell).problems
    assert refused.fact.endswith("cpu has 24")
    (remedied,) = make_plan(compose_requests(["model=sd35_medium", "precision=fp32"])[0].cell).problems
    assert "it would fit with precision=bf16" in remedied.remedy
    assert not make_plan(compose_requests(["model=sd15"])[0].cell).problems
    other = make_plan(compose_requests(["model=flux_dev", "hardware=cpu"])[0].cell)
    assert not other.problems, "it may be for some other machine"
    assert any("and this machine has 24.0" in note for note in other.notes)
    assert not any("this machine" in note for note in make_plan(compose_requests(["hardware=cpu"])[0].cell).notes)


@pytest.mark.usefixtures("small_machine")
def test_a_recipe_file_has_no_other_machines_memory(tmp_path: Path, cli: Cli) -> None:
    asked = compose_requests(["model=sd15"])[0].cell
    code, text, _ = cli("show", "model=sd15")
    assert code == 0
    data = yaml.safe_load(text)
    data["recipe"]["hardware"]["memory_gib"] = 1000
    (tmp_path / "f.yaml").write_text(yaml.safe_dump(data))
    read = compose_requests([], lock=tmp_path / "f.yaml")[0].cell
    assert (read.recipe.hardware.memory_gib, read.id) == (24, asked.id)
    typed = compose_requests(["hardware.memory_gib=500"], lock=tmp_path / "f.yaml")[0].cell
    assert typed.recipe.hardware.memory_gib == 500
