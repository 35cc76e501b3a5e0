"""All options x YAMLs: every YAML has its kind, every kind a YAML, every field stands in the YAML and is explained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.option_steps import values

from diffopt.config import Composer, shipped_conf
from diffopt.config.catalogue import first_line_of_option
from diffopt.config.resolve import Resolver
from diffopt.recipe.options import own_values_of_option
from diffopt.recipe.recipe import STEP_GROUPS
from diffopt.schema.step import registered_step_kinds

FILES = sorted(shipped_conf().glob("*/*.yaml"))
STEP_FILES = [path for path in FILES if path.parent.name in STEP_GROUPS]
OVERLAYS = ("recipe", "sweep")  # which choose options
EXTENDING = [
    path
    for path in FILES
    if path.parent.name not in OVERLAYS and "defaults" in own_values_of_option(path.parent.name, path.stem)
]
FROM_FILES = ("local", "hub")  # options for whatever model the user names
# Which weights or whose code is loaded, and on what terms: never another's by oversight, so each file says it.
OF_ITS_OWN = {
    "model": {"name", "id", "revision", "variant", "architecture", "licence", "gated"},
    "attention": {"hub.repository", "hub.revision", "hub.trust_remote_code"},
}


def name(path: object) -> str:
    return "/".join(str(path).rsplit("/", 2)[1:])


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_yaml_says_what_it_is_in_its_first_line(path: object) -> None:
    line = first_line_of_option(path)  # type: ignore[arg-type]
    assert 10 <= len(line) <= 120, line


@pytest.mark.parametrize("path", STEP_FILES, ids=name)
def test_every_option_makes_its_step_and_lists_all_of_its_keys(path: object) -> None:
    group, option = name(path).removesuffix(".yaml").split("/")
    composed = Composer().compose([f"{group}={option}"])
    request = Resolver(Composer()).request(composed)
    step = getattr(request.cell.recipe, group)
    assert composed.data[group]["kind"] == step.kind
    assert set(composed.data[group]) == set(type(step).model_fields)


@pytest.mark.parametrize("group", STEP_GROUPS)
def test_every_kind_has_a_yaml(group: str) -> None:
    composer = Composer()
    used = {composer.compose([f"{group}={option}"]).data[group]["kind"] for option in composer.options(group)}
    assert used == set(registered_step_kinds(group))


@pytest.mark.parametrize("path", [p for p in STEP_FILES if p.stem not in ("none", "auto", "default")], ids=name)
def test_when_it_helps_and_when_it_hurts(path: object) -> None:
    text = Path(str(path)).read_text(encoding="utf-8").lower()
    assert "helps" in text
    assert "hurts" in text


def test_no_shipped_yaml_names_code() -> None:
    for path in FILES:
        assert "_target_" not in path.read_text(encoding="utf-8")
        assert yaml.safe_load(path.read_text(encoding="utf-8")) is not None


@pytest.mark.parametrize("path", EXTENDING, ids=name)
def test_an_option_that_extends_a_sibling_says_only_what_differs(path: Path) -> None:
    own, group = own_values_of_option(path.parent.name, path.stem), path.parent.name
    (sibling,) = (parent for parent in own.pop("defaults") if parent != "_self_")
    assert set(repeated(own, values(group, sibling))) - OF_ITS_OWN.get(group, set()) == set()


def repeated(own: dict[str, Any], extended: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys that have the value which they would have anyway."""
    for key, value in own.items():
        inner = extended.get(key)
        if isinstance(value, dict) and isinstance(inner, dict):
            yield from repeated(value, inner, f"{prefix}{key}.")
        elif key in extended and inner == value:
            yield f"{prefix}{key}"


def test_what_is_repeated_is_found() -> None:
    extended = {"a": 1, "block": {"x": 1, "y": None}, "names": ["p"]}
    assert list(repeated({"a": 1, "b": 1, "block": {"x": 2, "y": None}, "names": ["p"]}, extended)) == [
        "a",
        "block.y",
        "names",
    ]


@pytest.mark.parametrize("path", [path for path in EXTENDING if path.parent.name == "model"], ids=name)
def test_what_a_model_is_stands_in_two_files_at_most(path: Path) -> None:
    """Its own and its sibling's, so that it can still be read."""
    (sibling,) = (name for name in own_values_of_option("model", path.stem)["defaults"] if name != "_self_")
    assert "defaults" not in own_values_of_option("model", sibling)


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "model" and p.stem not in FROM_FILES], ids=name)
def test_a_model_says_itself_which_weights_it_is(path: Path) -> None:
    own = own_values_of_option("model", path.stem)
    assert own.keys() >= OF_ITS_OWN["model"]
    assert own["name"] == path.stem
    controlnet = values("model", path.stem).get("controlnet")
    assert controlnet == own.get("controlnet"), "it has an id and a revision, too"


def test_what_is_filled_in_from_files_says_itself_which_ones() -> None:
    for option in FROM_FILES:
        assert own_values_of_option("model", option).keys() >= {"name", "id", "revision"}
