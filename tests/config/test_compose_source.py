"""User YAML is data: whatever could make Hydra execute or reach beyond its group is refused, and nothing runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffopt.config import Composer
from diffopt.config.source import read_option_file
from diffopt.errors import UsageError

EVIL = {
    "_target_": ("compile/evil.yaml", "_target_: pathlib.Path.touch\n", "_target_"),
    "nested _target_": ("compile/evil.yaml", "options: {deep: [{_target_: os.system}]}\n", "options.deep[0]._target_"),
    "()": ("compile/evil.yaml", '"()": logging.FileHandler\nfilename: pwned\n', "'()'"),
    "hydra block": ("recipe/evil.yaml", "hydra: {callbacks: {x: {_target_: a.b}}}\n", "'hydra'"),
    "package hydra": ("compile/evil.yaml", "# @package hydra.callbacks\nx: {kind: none}\n", "@package hydra.callbacks"),
    "package hydra, spaced": ("compile/evil.yaml", "#  @package   hydra.job_logging\nx: 1\n", "hydra.job_logging"),
    "package _global_ in a group": ("compile/evil.yaml", "# @package _global_\nkind: none\n", "_global_"),
    "@ in defaults": ("recipe/evil.yaml", "defaults: ['/compile@hydra.callbacks: none']\n", "not allowed"),
    "@ in a defaults mapping": (
        "recipe/evil.yaml",
        "defaults: [{'/compile@hydra.job_logging': none}]\n",
        "not allowed",
    ),
    "foreign group in defaults": ("compile/evil.yaml", "defaults: [/quant/none]\n", "not allowed"),
    "override in an option": ("compile/evil.yaml", "defaults: [{override /quant: none}]\n", "not allowed"),
    "override hydra": ("recipe/evil.yaml", "defaults: [{override hydra/launcher: joblib}]\n", "not allowed"),
    "optional": ("recipe/evil.yaml", "defaults: [{optional compile: x}]\n", "not allowed"),
    "interpolation": ("compile/evil.yaml", "mode: ${oc.env:HOME}\n", "interpolation"),
    "interpolation in a list": ("compile/evil.yaml", "components: ['${now:%s}']\n", "interpolation"),
    "searchpath": ("recipe/evil.yaml", "hydra.searchpath: [pkg://evil]\n", "hydra.searchpath"),
    "python tag": ("compile/evil.yaml", "kind: !!python/object/apply:os.system ['touch pwned']\n", "YAML"),
    "value in an overlay": ("recipe/evil.yaml", "compile: {fullgraph: false}\n", "only chooses options"),
    "not a mapping": ("compile/evil.yaml", "- a\n- b\n", "mapping"),
    "package with a colon": ("compile/evil.yaml", "# @PACKAGE: hydra.callbacks.x\nkind: none\n", "hydra.callbacks.x"),
    "package behind a BOM": ("compile/evil.yaml", "\ufeff# @package hydra\nkind: none\n", "hydra"),
    "alias": ("compile/evil.yaml", "kind: &a none\nmode: *a\n", "alias"),
    "an alias to itself": ("compile/evil.yaml", "kind: &a [*a]\n", "alias"),
    "merge key": ("compile/evil.yaml", "a: &a {kind: none}\n<<: *a\n", "alias"),
    "deep nesting": ("compile/evil.yaml", "kind: " + "[" * 3000 + "]" * 3000, "too deeply"),
    "duplicate key": ("compile/evil.yaml", "kind: none\nkind: full\n", "duplicate"),
    "binary": ("compile/evil.yaml", "kind: !!binary aGk=\n", "bytes"),
    "not set": ("compile/evil.yaml", "kind: ???\n", "???"),
    "a scalar": ("compile/evil.yaml", "5\n", "mapping"),
    "recipe in a recipe": ("recipe/evil.yaml", "defaults: [{override /recipe: pytorch2}]\n", "not allowed"),
    "path in an override": ("recipe/evil.yaml", "defaults: [{override /compile: ../compile/none}]\n", "not allowed"),
    "null in an override": ("recipe/evil.yaml", "defaults: [{override /compile: null}]\n", "not allowed"),
    "no YAML": ("compile/evil.yaml", "kind: [\n", "YAML"),
}


@pytest.mark.parametrize("name", EVIL)
def test_evil_yaml_is_refused_and_not_executed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file, text, said = EVIL[name]
    path = tmp_path / "conf" / file
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    group = file.split("/")[0]
    with pytest.raises(UsageError) as caught:
        Composer([tmp_path / "conf"]).compose([f"{group}=evil"])
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["conf"], "something was executed"


def test_options_that_extend_each_other_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "compile").mkdir()
    (tmp_path / "compile" / "a.yaml").write_text("defaults: [b, _self_]\n")
    (tmp_path / "compile" / "b.yaml").write_text("defaults: [a, _self_]\n")
    with pytest.raises(UsageError, match="circle"):
        Composer([tmp_path]).compose(["compile=a"])


def test_a_group_of_the_users_own_is_not_a_group(tmp_path: Path) -> None:
    (tmp_path / "foo").mkdir()
    (tmp_path / "foo" / "bar.yaml").write_text("x: 1\n")
    assert "foo" not in Composer([tmp_path]).groups


def test_an_unrelated_hydra_project_in_conf_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "gpu.yaml").write_text("_target_: lightning.Trainer\n")
    (tmp_path / "config.yaml").write_text("defaults: [trainer: gpu]\nhydra: {job: {chdir: true}}\n")
    assert Composer([tmp_path]).compose([]).choices["compile"] == "none"


def test_shadowing_a_shipped_option_is_refused_unless_it_is_the_same_file(tmp_path: Path) -> None:
    shipped = Composer().option_file("recipe", "pytorch2")
    (tmp_path / "recipe").mkdir()
    mine = tmp_path / "recipe" / "pytorch2.yaml"
    mine.write_text(shipped.read_text())
    assert Composer([tmp_path]).compose(["recipe=pytorch2"]).choices["compile"] == "reduce_overhead"
    mine.write_text("defaults: []\n")
    with pytest.raises(UsageError, match="has the name of another option"):
        Composer([tmp_path]).compose(["recipe=pytorch2"])


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: 1\n")
    assert read_option_file(path, "compile/x.yaml") == {"a": 1}
    path.write_text("a: 22\n")
    assert read_option_file(path, "compile/x.yaml") == {"a": 22}
