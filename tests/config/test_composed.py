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
from diffopt.errors import UsageError

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


def apart(composed: Composed, other: Composed, but: str) -> list[str]:
    names = {"data", "choices", "typed", "chosen", "origins"} - {but}
    return [name for name in sorted(names) if getattr(composed, name) != getattr(other, name)]


def by_hydra(composer: Composer, typed: list[str]) -> Composed:
    """All of it composed by Hydra, at once."""
    return composer._composed_by_hydra(composer.parse(typed))


@pytest.mark.parametrize("groups", [("recipe", "quant", "compile"), ("model", "workload", "recipe", "attention")])
def test_known_options_compose_as_hydra_composes_them(own: Path, groups: tuple[str, ...]) -> None:
    """In any order, with a folder of the user's own whose options extend the shipped ones."""
    known, points = Composer([own]), matrix(groups)
    random.Random(0).shuffle(points)
    for point in points[:24]:
        assert apart(known.compose(point), by_hydra(known, point), but="typed") == [], point


@pytest.mark.parametrize(
    ("groups", "times"), [(("quant", "compile", "attention"), 4), (("recipe", "quant", "compile"), 6)]
)
def test_hydra_is_asked_for_recipes_and_options_of_the_users_own_once_each(
    own: Path, monkeypatch: pytest.MonkeyPatch, groups: tuple[str, ...], times: int
) -> None:
    """Three options are theirs, with what stands beside them; the rest takes one more of each recipe."""
    known, asked = Composer([own]), []
    hydra = known._composed_by_hydra
    monkeypatch.setattr(known, "_composed_by_hydra", lambda new: asked.append(new) or hydra(new))
    for point in sorted(matrix(groups)):
        known.compose(point)
    assert len(asked) == times


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("pair", [("default", "none"), ("mine", "none"), ("mine", "default")])
def test_of_a_group_that_is_given_twice_the_last_counts_as_with_hydra(
    own: Path, pair: tuple[str, str], order: int
) -> None:
    twice = [f"compile={option}" for option in pair[::order]]
    known = Composer([own])
    assert apart(known.compose(twice), by_hydra(known, twice), but="typed") == []


def test_an_option_that_nobody_chooses_may_have_the_name_of_another(own: Path) -> None:
    (own / "quant" / "none.yaml").write_text("kind: none\ncomponents: []\n")
    assert Composer([own]).compose(["quant=int8_dynamic"]).choices["quant"] == "int8_dynamic"
    with pytest.raises(UsageError, match="has the name of another option"):
        Composer([own]).compose(["attention=math"])


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
