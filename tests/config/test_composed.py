"""What a sweep composes of parts that it knows is what a composer that knows nothing composes."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from diffopt.config import Composed, Composer, composer, resolve, shipped_conf
from diffopt.config.composed import DEPENDENT
from diffopt.config.resolve import make_composer

OWN = {
    "quant/mine.yaml": "defaults: [int8_dynamic, _self_]\ncomponents: [vae]\n",
    "quant/plain.yaml": "kind: none\n",
    "compile/mine.yaml": "defaults: [regional, _self_]\nfullgraph: false\n",
    "recipe/mine.yaml": (
        "# @package _global_\ndefaults: [{override /quant: mine}, {override /attention: math}]\n"
        "workload: {steps: 7, seed: 3}\n"
    ),
}
OPTIONS = {
    "quant": ["none", "int8_weight", "mine", "plain"],
    "compile": ["none", "default", "mine"],
    "attention": ["auto", "vanilla"],
    "workload": ["auto", "img2img"],
    "recipe": ["baseline", "pytorch2", "mine"],
    "model": ["tiny", "sdxl"],
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for name, text in OWN.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def matrix(groups: Sequence[str]) -> list[list[str]]:
    points = itertools.product(*(OPTIONS[group] for group in groups))
    return [[f"{group}={option}" for group, option in zip(groups, point, strict=True)] for point in points]


def apart(composed: Composed, other: Composed) -> list[str]:
    names = ("data", "choices", "typed", "chosen", "origins")
    return [name for name in names if getattr(composed, name) != getattr(other, name)]


@pytest.mark.parametrize("groups", [("recipe", "quant", "compile"), ("model", "workload", "recipe", "attention")])
def test_known_options_compose_as_hydra_composes_them(own: Path, groups: tuple[str, ...]) -> None:
    """In any order, with a folder of the user's own whose options extend the shipped ones."""
    known, points = Composer([own]), matrix(groups)
    random.Random(0).shuffle(points)
    for point in points:
        typed = [*point, "workload.steps=3"]
        assert apart(known.compose(typed), Composer([own]).compose(typed)) == [], point


def test_a_sweep_asks_hydra_once_per_option(monkeypatch: pytest.MonkeyPatch) -> None:
    known, asked = Composer(), []
    by_hydra = known._composed_by_hydra
    monkeypatch.setattr(known, "_composed_by_hydra", lambda groups: asked.append(groups) or by_hydra(groups))
    for point in matrix(("quant", "compile", "attention")):
        if not {"quant=mine", "quant=plain", "compile=mine"} & set(point):
            known.compose(point)
    assert len(asked) == 2 + 2 + 2 - 2  # the first has one of each; then one for each that is new


def test_of_a_group_that_is_given_twice_the_last_counts_as_with_hydra() -> None:
    known, twice = Composer(), ["compile=default", "compile=none"]
    for option in OPTIONS["compile"][:2]:
        known.compose([f"compile={option}"])
    assert apart(known.compose(twice), Composer().compose(twice)) == []


def test_the_groups_that_do_not_stand_alone_are_a_recipe_and_what_it_lays_values_over(own: Path) -> None:
    known = Composer([own])
    mine, other = (known.compose([f"recipe={name}"]) for name in ("mine", "baseline"))
    chosen = {group for group in mine.choices if mine.choices[group] != other.choices[group]}
    assert {"recipe", *(name for name in mine.data if mine.data[name] != other.data[name])} - chosen == {"workload"}
    assert set(DEPENDENT) == {"recipe", "workload"}


def test_an_edited_file_of_a_checkout_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(shipped_conf(), conf)
    for module in (resolve, composer):
        monkeypatch.setattr(module, "shipped_conf", lambda: conf)
    known = make_composer(None, ())
    assert make_composer(None, ()) is known
    (conf / "compile" / "mine.yaml").write_text("defaults: [regional, _self_]\nfullgraph: false\n")
    found = make_composer(None, ()).compose(["compile=mine"])
    assert found.data["compile"]["fullgraph"] is False
    (conf / "compile" / "mine.yaml").write_text("defaults: [default, _self_]\nfullgraph: true\n")
    assert make_composer(None, ()).compose(["compile=mine"]).data["compile"]["fullgraph"] is True
