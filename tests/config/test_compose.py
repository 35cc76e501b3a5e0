"""Composition: our configs equal Hydra's, choices on the command line beat overlays, mistakes are one paragraph."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from diffopt.config import Composer, shipped_conf
from diffopt.config.resolve import compose_requests
from diffopt.config.sweep import expand
from diffopt.errors import UsageError
from diffopt.recipe.options import option_names, shipped_option


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


@pytest.fixture(scope="module")
def hydra() -> Hydra:
    """As an application has it, over the shipped options; asked without its global state."""
    with initialize_config_dir(version_base="1.3", config_dir=str(shipped_conf())):
        made = GlobalHydra.instance().hydra
    assert made is not None
    return made


def hydras_own(hydra: Hydra, overrides: list[str]) -> Any:
    """What ``hydra.compose`` gives."""
    composed = hydra.compose_config("config", overrides, RunMode.RUN, from_shell=False, with_log_configuration=False)
    with open_dict(composed):
        del composed["hydra"]
    return OmegaConf.to_container(composed, resolve=False)


OPTIONS = {group.name: option_names(group.name) for group in sorted(shipped_conf().iterdir()) if group.is_dir()}
STEPS = {group: names for group, names in OPTIONS.items() if group not in ("recipe", "sweep")}


@pytest.mark.parametrize("row", range(max(map(len, STEPS.values()))))
def test_every_option_composes_as_hydra_composes_it(composer: Composer, hydra: Hydra, row: int) -> None:
    """One of each group at a time, as long as each group has some."""
    chosen = {group: names[row] for group, names in STEPS.items() if row < len(names)}
    words = [f"{group}={option}" for group, option in chosen.items()]
    expected = hydras_own(hydra, words)
    assert composer.compose(words).data == expected
    for group, option in chosen.items():
        assert shipped_option(group, option) == expected[group], "as it is read without Hydra"


@pytest.mark.parametrize("recipe", OPTIONS["recipe"])
def test_every_recipe_composes_as_hydra_composes_it(composer: Composer, hydra: Hydra, recipe: str) -> None:
    assert composer.compose([f"recipe={recipe}"]).data == hydras_own(hydra, [f"recipe={recipe}"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["compile=none,default", "workload.batch_size=1,4", "workload.seed=3"],
        ["recipe=baseline,pytorch2", "compile=none,max_autotune", "quant=none"],
        ["attention=choice(sdpa,math)", "workload.steps=range(1,4)", 'workload.prompt="a cat, a dog"'],
        ["quant=glob(int8*)", "precision=bf16", "compile.fullgraph=true,false", "compile=default"],
    ],
)
def test_our_sweep_equals_hydras(composer: Composer, hydra: Hydra, arguments: list[str]) -> None:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    (points,) = BasicSweeper.split_arguments(composer.parse(arguments), max_batch_size=None)
    assert [composed.data for composed in expand(composer, arguments)] == [hydras_own(hydra, point) for point in points]


def test_an_interpolated_order_of_overrides_does_not_matter(composer: Composer) -> None:
    words = ["compile.fullgraph=false", "compile=default", "workload.steps=3"]
    first = composer.compose(words)
    assert all(composer.compose(list(order)).data == first.data for order in itertools.permutations(words))


@pytest.mark.parametrize("choice", ["none", "max_autotune", "regional"])
@pytest.mark.parametrize("multirun", [False, True])
def test_a_choice_on_the_command_line_beats_the_overlay(choice: str, multirun: bool) -> None:
    (asked,) = compose_requests(["recipe=pytorch2", f"compile={choice}"], multirun=multirun)
    (plain,) = compose_requests([f"compile={choice}"])
    assert asked.cell.choices["compile"] == choice
    assert asked.cell.recipe.compile == plain.cell.recipe.compile
    assert asked.cell.choices["precision"] == "fp16"


def test_points_are_independent_of_each_other(composer: Composer) -> None:
    """A value set at one point must not leak into the skeleton that the next point starts from."""
    set_once = expand(composer, ["workload.seed=7,8", "compile=default"])
    assert [point.data["workload"]["seed"] for point in set_once] == [7, 8]
    assert composer.compose(["compile=default"]).data["workload"]["seed"] == 0


def test_equal_cells_are_planned_once() -> None:
    assert len(compose_requests(["recipe=baseline,baseline", "compile=none"], multirun=True)) == 1


def test_named_matrix_axes_zip_exclude(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(
        yaml.safe_dump(
            {
                "axes": {"compile": ["none", "default"], "workload.batch_size": [1, 2]},
                "zip": [{"precision": "fp16", "workload.seed": 1}, {"precision": "bf16", "workload.seed": 2}],
                "exclude": [{"compile": "default", "workload.batch_size": 2}],
            }
        )
    )
    found = compose_requests(["sweep=mine"], multirun=True, folders=[tmp_path])
    seen = {
        (chosen["compile"], cell.workload.batch_size, chosen["precision"], cell.workload.seed)
        for cell, chosen in ((r.cell, r.cell.choices) for r in found)
    }
    assert len(found) == len(seen) == 6
    assert {(c, b) for c, b, _, _ in seen} == {("none", 1), ("none", 2), ("default", 1)}
    assert {(p, s) for _, _, p, s in seen} == {("fp16", 1), ("bf16", 2)}
    typed = compose_requests(["sweep=mine", "compile=regional"], multirun=True, folders=[tmp_path])
    assert {r.cell.choices["compile"] for r in typed} == {"regional"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("axes: {compile: none}", "axes.compile"),
        ("axis: {compile: [none]}", "'axis' is not a key"),
        ("exclude: [{}]", "empty exclude"),
        ("axes: {compile: [none]}\nexclude: [{compile: none}]", "leaves no cell"),
        ("axes: {compile: [nope]}", "no option 'nope'"),
        ("axes: {compile: [none]}\nexclude: [{compil: none}]", "neither a group nor a key"),
    ],
)
def test_a_bad_matrix_is_explained(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=said):
        compose_requests(["sweep=mine"], multirun=True, folders=[tmp_path])


def test_composing_leaves_no_global_hydra_behind(composer: Composer) -> None:
    composer.compose(["compile=default"])
    assert not GlobalHydra.instance().is_initialized()


def test_configs_that_an_application_keeps_in_hydras_store_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names of our own, which Hydra would take for their schemas, and by another."""
    from hydra.core.config_store import ConfigStore

    store, before = ConfigStore.instance(), Composer()
    monkeypatch.setattr(store, "repo", copy.deepcopy(store.repo))
    for place in ({"name": "config"}, {"group": "model", "name": "tiny"}, {"group": "model", "name": "resnet"}):
        store.store(**place, node={"layers": 18})
    assert Composer().options("model") == before.options("model")
    assert Composer().compose(["model=tiny"]) == before.compose(["model=tiny"])
