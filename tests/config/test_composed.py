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
from diffopt.recipe.options import shipped_option

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
    known, plain, points = Composer([own]), Composer([own]), matrix(groups)
    random.Random(0).shuffle(points)
    for point in points[:24]:
        assert apart(known.compose(point), by_hydra(plain, point), but="typed") == [], point


def asked_of_hydra(known: Composer, points: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> int:
    asked, hydra = [], known._composed_by_hydra
    monkeypatch.setattr(known, "_composed_by_hydra", lambda groups: asked.append(groups) or hydra(groups))
    for point in points:
        known.compose(point)
    return len(asked)


def test_hydra_is_asked_once_for_all_shipped_options_and_once_for_each_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = [point for point in matrix(("quant", "compile", "attention")) if "mine" not in str(point)]
    points = [point for point in shipped if "plain" not in str(point)]
    assert len(points) == 8
    assert asked_of_hydra(Composer(), points, monkeypatch) == 1
    recipes = [
        [f"recipe={name}", "quant=none", compiled]
        for name in ("baseline", "pytorch2")
        for compiled in ("compile=none", "compile=default")
    ]
    assert asked_of_hydra(Composer(), recipes, monkeypatch) == 2


def test_hydra_is_asked_for_options_of_the_users_own_and_not_for_each_combination(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [[f"quant={q}", f"attention={a}"] for q in ("mine", "plain") for a in ("math", "vanilla", "sdpa")]
    assert asked_of_hydra(Composer([own]), points, monkeypatch) == 2 + 2  # and for each attention beside the first


GIVEN_TWICE = {
    "compile": [("default", "none"), ("mine", "none"), ("mine", "default")],
    "quant": [("mine", "plain"), ("mine", "mine2"), ("none", "mine2"), ("int8_weight", "none")],
}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("group", "pair"), [(group, pair) for group, pairs in GIVEN_TWICE.items() for pair in pairs])
def test_of_a_group_that_is_given_twice_the_last_counts_as_with_hydra(
    own: Path, group: str, pair: tuple[str, str], order: int
) -> None:
    (own / "quant" / "mine2.yaml").write_text("defaults: [mine, _self_]\ncomponents: [unet]\n")
    shutil.copy(shipped_conf() / "quant" / "none.yaml", own / "quant" / "none.yaml")  # as a checkout's own conf/ has it
    twice = [f"{group}={option}" for option in pair[::order]]
    assert apart(Composer([own]).compose(twice), by_hydra(Composer([own]), twice), but="typed") == []


@pytest.mark.parametrize("chosen", ["nosuch", "broken", "circle"])
def test_a_choice_of_a_recipe_that_the_command_line_replaces_is_not_read(own: Path, chosen: str) -> None:
    (own / "quant" / "broken.yaml").write_text("kind: [")
    (own / "quant" / "circle.yaml").write_text("defaults: [circle2, _self_]\n")
    (own / "quant" / "circle2.yaml").write_text("defaults: [circle, _self_]\n")
    (own / "recipe" / "bad.yaml").write_text(f"# @package _global_\ndefaults: [{{override /quant: {chosen}}}]\n")
    words = ["recipe=bad", "quant=none"]
    for given in (words, words[::-1]):
        assert Composer([own]).compose(given).choices["quant"] == "none"
    with pytest.raises(UsageError):
        Composer([own]).compose(["recipe=bad"])


def test_an_option_that_nobody_chooses_may_have_the_name_of_another(own: Path) -> None:
    """Also one that the chosen option extends: it is the shipped one that is meant there."""
    (own / "attention").mkdir()
    for name in ("quant/none", "attention/sdpa"):
        (own / f"{name}.yaml").write_text("kind: none\nx: 1\n")
    found = Composer([own]).compose(["quant=int8_dynamic", "attention=math"])
    assert found.data["attention"] == shipped_option("attention", "math")
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
