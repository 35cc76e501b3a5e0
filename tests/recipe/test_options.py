"""diffopt.recipe.options: what is read without Hydra is what Hydra makes of it.

Every shipped option is compared in tests/config/test_compose.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from support.places import CONF

from diffopt.errors import UsageError
from diffopt.recipe.options import (
    customary_options,
    merged_option,
    own_values_of_option,
    shipped_option,
    shipped_step,
)


def test_what_is_customary_is_what_hydra_chooses() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        chosen = compose("config", return_hydra_config=True).hydra.runtime.choices
    assert customary_options() == {group: option for group, option in chosen.items() if "/" not in group}


CASES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "blocks inside blocks": {
        "base": {"kind": "a", "options": {"first": 1, "deep": {"x": 1, "y": 2}}},
        "mine": {"defaults": ["base", "_self_"], "options": {"deep": {"y": 3}}},
    },
    "lists are replaced": {
        "base": {"skip": ["a", "b"], "block": {"skip": [1, 2]}},
        "mine": {"defaults": ["base", "_self_"], "skip": ["c"], "block": {"skip": []}},
    },
    "null takes a block away, and a block null's place": {
        "base": {"block": {"x": 1}, "nothing": None},
        "mine": {"defaults": ["base", "_self_"], "block": None, "nothing": {"y": 2}},
    },
    "an empty block changes nothing": {
        "base": {"block": {"x": 1}},
        "mine": {"defaults": ["base", "_self_"], "block": {}},
    },
    "siblings in their order": {
        "base": {"x": 1, "y": 1, "block": {"x": 1, "y": 1}},
        "other": {"x": 2, "block": {"x": 2}},
        "mine": {"defaults": ["base", "other", "_self_"], "block": {"z": 3}},
    },
    "itself before its sibling": {
        "base": {"x": 1, "block": {"x": 1}},
        "mine": {"defaults": ["_self_", "base"], "x": 2, "y": 2, "block": {"x": 2, "y": 2}},
    },
    "itself last where it says nothing": {
        "base": {"x": 1, "block": {"x": 1, "y": 1}},
        "mine": {"defaults": ["base"], "x": 2, "block": {"x": 2}},
    },
    "a sibling's sibling": {
        "root": {"x": 1, "block": {"x": 1, "y": 1, "z": 1}},
        "base": {"defaults": ["root", "_self_"], "block": {"y": 2}},
        "mine": {"defaults": ["base", "_self_"], "block": {"z": 3}},
    },
}


@pytest.mark.filterwarnings("ignore:.*missing `_self_`")  # Hydra's, which diffopt's own composing leaves out
@pytest.mark.parametrize("files", CASES.values(), ids=CASES)
def test_siblings_are_merged_as_hydra_does(files: Mapping[str, Mapping[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "quant").mkdir()
    for name, data in files.items():
        (tmp_path / "quant" / f"{name}.yaml").write_text(yaml.safe_dump(dict(data)), encoding="utf-8")
    with initialize_config_dir(version_base="1.3", config_dir=str(tmp_path)):
        hydras = OmegaConf.to_container(compose("quant/mine"), resolve=False)["quant"]
    assert merged_option(lambda name: dict(files[name]), "mine") == hydras


def test_a_circle_is_told() -> None:
    files = {"a": {"defaults": ["b"]}, "b": {"defaults": ["a"]}}
    with pytest.raises(UsageError, match="circle"):
        merged_option(lambda name: dict(files[name]), "a")


def test_what_is_read_is_the_callers() -> None:
    for read in (shipped_option, own_values_of_option):
        read("quant", "int8_dynamic")["skip"].append("spoiled")
        assert "spoiled" not in read("quant", "int8_dynamic")["skip"]


def test_a_step_and_none() -> None:
    step = shipped_step("compile", "regional")
    assert step is not None
    assert step.model_dump(mode="json") == shipped_option("compile", "regional")
    assert shipped_step("compile", "no_such") is None
