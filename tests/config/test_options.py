"""All options x YAMLs: every YAML has its kind, every kind a YAML, every field stands in the YAML and is explained."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.option_steps import values

from diffopt.config import Composer, shipped_conf
from diffopt.config.catalogue import first_line
from diffopt.config.resolve import Resolver
from diffopt.recipe.recipe import STEP_GROUPS
from diffopt.schema.step import kinds

FILES = sorted(shipped_conf().glob("*/*.yaml"))
STEP_FILES = [path for path in FILES if path.parent.name in STEP_GROUPS]


def name(path: object) -> str:
    return "/".join(str(path).rsplit("/", 2)[1:])


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_yaml_says_what_it_is_in_its_first_line(path: object) -> None:
    line = first_line(path)  # type: ignore[arg-type]
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
    assert used == set(kinds(group))


@pytest.mark.parametrize("path", [p for p in STEP_FILES if p.stem not in ("none", "auto", "default")], ids=name)
def test_when_it_helps_and_when_it_hurts(path: object) -> None:
    text = Path(str(path)).read_text(encoding="utf-8").lower()
    assert "helps" in text
    assert "hurts" in text


def test_no_shipped_yaml_names_code() -> None:
    for path in FILES:
        assert "_target_" not in path.read_text(encoding="utf-8")
        assert yaml.safe_load(path.read_text(encoding="utf-8")) is not None


@pytest.mark.parametrize("path", [p for p in STEP_FILES if "\ndefaults:" in p.read_text(encoding="utf-8")], ids=name)
def test_an_option_that_extends_a_sibling_says_only_what_differs(path: Path) -> None:
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    (sibling,) = (parent for parent in own.pop("defaults") if parent != "_self_")
    extended = values(path.parent.name, sibling)
    assert [key for key, value in own.items() if key in extended and extended[key] == value] == []
