"""A label says what is there: of every option, on the command line, in recipe files, in rows; else it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffopt.config import Composer
from diffopt.config.labels import ANY, STANDS_FOR, Labels
from diffopt.config.resolve import Resolver, compose_requests
from diffopt.recipe.labels import cell_labels, changed_keys_of_label, changed_label, option_of_label
from diffopt.recipe.options import option_names
from diffopt.recipe.recipe import STEP_GROUPS
from diffopt.run.row import cell_for_row

Cli = Callable[..., tuple[int, str, str]]
CPU = ("hardware=cpu",)


def labels(*words: str) -> dict[str, str]:
    (request,) = compose_requests([*CPU, *words])
    return dict(request.cell.choices)


def test_a_label_is_taken_apart_as_it_was_put_together() -> None:
    for option, keys in (("sdpa", ()), ("sdpa", ("backend",)), ("max_autotune", ("mode", "options.shape_padding"))):
        label = changed_label(option, keys)
        assert (option_of_label(label), changed_keys_of_label(label)) == (option, keys)


@pytest.mark.parametrize(
    ("words", "group", "label"),
    [
        (["precision.dtype=float16"], "precision", "fp32 (changed: dtype)"),
        (["precision.dtype=float32"], "precision", "fp32"),
        (
            ["compile=default", "compile.options.epilogue_fusion=true"],
            "compile",
            "default (changed: options.epilogue_fusion)",
        ),
        (
            ["compile=default", "compile.fullgraph=false", "compile.dynamic=true"],
            "compile",
            "default (changed: fullgraph, dynamic)",
        ),
        (["attention=sdpa", "attention.components=[denoiser,vae]"], "attention", "sdpa (changed: components)"),
        (["measure=quick", "measure.samples=2"], "measure", "quick (changed: samples)"),
        (["hardware.device=cuda"], "hardware", "cpu (changed: device)"),
        (["hardware.memory_gib=4"], "hardware", "cpu"),
        (["workload=txt2img", "workload.task=img2img"], "workload", "txt2img (changed: task)"),
        (["workload.steps=3", "workload.batch_size=2"], "workload", "auto"),
        (["model=sdxl", "model.weights=tiny"], "model", "sdxl"),
        (["model=sdxl", "model.weights=random", "model.revision=0123"], "model", "sdxl (changed: revision)"),
    ],
)
def test_what_the_command_line_changes_of_an_option_is_in_its_label(words: list[str], group: str, label: str) -> None:
    assert labels(*words)[group] == label


def test_plans_rows_and_files_have_the_label(cli: Cli, tmp_path: Path) -> None:
    words = [*CPU, "precision.vae=float32", "measure=quick", "measure.samples=2"]
    code, out, err = cli("plan", *words)
    assert code == 0, err
    assert "precision=fp32 (changed: vae)" in out
    (planned,) = json.loads(cli("plan", "--json", *words)[1])["cells"]
    assert planned["choices"]["precision"] == "fp32 (changed: vae)"
    assert planned["choices"]["measure"] == "quick (changed: samples)"
    text = cli("show", *words)[1]
    assert yaml.safe_load(text)["choices"]["precision"] == "fp32 (changed: vae)"
    (tmp_path / "mine.yaml").write_text(text)
    assert cli("show", "--recipe", "mine.yaml")[1] == text
    assert cli("show", "--recipe", "mine.yaml", "precision.vae=auto")[1] == cli("show", *words, "precision.vae=auto")[1]
    more = cli("show", "--recipe", "mine.yaml", "precision.tf32=true")[1]
    assert yaml.safe_load(more)["choices"]["precision"] == "fp32 (changed: vae, tf32)"
    assert yaml.safe_load(cli("show", "--recipe", "mine.yaml", "precision=bf16")[1])["choices"]["precision"] == "bf16"


def test_a_changed_value_is_told_in_a_table_whatever_the_option() -> None:
    """One that no other cell of that option has is not told by its option's name alone."""

    def points(*words: str) -> list[dict[str, Any]]:
        requests = compose_requests([*CPU, *words], multirun=True)
        return [{**cell_for_row(r.cell), "choices": dict(r.cell.choices)} for r in requests]

    two = [*points("precision.dtype=float16"), *points("precision=bf16")]
    assert cell_labels(two) == [{"precision": "fp32 (changed: dtype)"}, {"precision": "bf16"}]
    swept = points("precision.dtype=float32,float16")
    assert cell_labels(swept) == [{"precision.dtype": "float32"}, {"precision.dtype": "float16"}]
    three = [*swept, *points("precision=bf16")]
    assert [label["precision"] for label in cell_labels(three)] == ["fp32", "fp32", "bf16"]
    assert [label["precision.dtype"] for label in cell_labels(three)] == ["float32", "float16", "bfloat16"]


GROUPS = [*STEP_GROUPS, *STANDS_FOR, "measure"]


@pytest.mark.parametrize("group", GROUPS)
def test_every_shipped_option_has_the_values_of_its_own(group: str) -> None:
    """As resolved, with all that is looked up: nothing of it is called changed."""
    composer = Composer()
    resolver, checked = Resolver(composer), Labels(composer)
    for option in option_names(group):
        if (group, option) in [("lora", "fused"), ("lora", "live"), ("lora", "hotswap"), ("runtime", "python")]:
            continue  # which want a file
        if (group, option) in [("model", "local"), ("model", "hub"), ("hardware", "auto")]:
            continue  # which have no values of their own
        words = [*([] if group == "hardware" else CPU), f"{group}={option}"]
        words += ["model.weights=random"] if group == "model" and option != "tiny" else []
        cell = resolver.request(composer.compose(words)).cell
        assert checked._changed(cell, group, option) == {}, option
        others = [name for name in option_names(group) if name != option and ANY.get(group) != name]
        alike = [name for name in others if not checked._changed(cell, group, name)]
        assert set(alike) <= ALIKE.get(group, {}).get(option, set()), option


ALIKE: dict[str, dict[str, set[str]]] = {
    # what stands for whatever is there has no values by which it could be told from another
    "workload": {name: {"auto"} for name in option_names("workload")} | {"auto": {"txt2img"}},
    "runtime": {"current": {"python"}},
}


def _file(path: Path, text: str, change: Callable[[dict[str, Any]], object]) -> Path:
    data = yaml.safe_load(text)
    change(data)
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def _choose(group: str, label: str) -> Callable[[dict[str, Any]], object]:
    return lambda data: data["choices"].update({group: label})


def _set(group: str, **values: Any) -> Callable[[dict[str, Any]], object]:
    def change(data: dict[str, Any]) -> None:
        (data if group in ("measure", "workload") else data["recipe"])[group].update(values)

    return change


UNTRUE = {
    "no such option": (
        _choose("attention", "nonsense"),
        ["attention=nonsense", "values of attention=auto: write 'auto'"],
    ),
    "a near miss": (_choose("precision", "fp3"), ["Did you mean fp32?"]),
    "another option": (_choose("attention", "sdpa"), ["and attention=sdpa has", "write 'auto'"]),
    "a changed value": (
        _set("precision", dtype="float16"),
        ["precision.dtype=float16, and precision=fp32 has float32", "values of precision=fp16: write 'fp16'"],
    ),
    "a change that is none": (_choose("precision", "fp32 (changed: dtype)"), ["dtype is said to be changed"]),
    "a changed value of no option": (
        _set("precision", vae="float32"),
        ["precision.vae=float32, and precision=fp32 has auto", 'write precision: "fp32 (changed: vae)"'],
    ),
    "one of two changes": (
        lambda data: [
            _set("precision", dtype="float16", vae="float32")(data),
            _choose("precision", "fp32 (changed: vae)")(data),
        ],
        ["precision.dtype=float16", 'write precision: "fp32 (changed: dtype, vae)"'],
    ),
    "a label that is missing": (lambda data: data["choices"].pop("attention"), None),
    "a missing label of another option": (
        lambda data: [data["choices"].pop("precision"), _set("precision", dtype="bfloat16")(data)],
        ["choices.precision", "bfloat16"],
    ),
    "another model": (_choose("model", "sd15"), ["model.name=tiny, and model=sd15 has sd15"]),
    "another device": (_choose("hardware", "a100"), ["hardware.name=cpu, and hardware=a100 has a100"]),
    "another protocol": (_choose("measure", "strict"), ["choices.measure", "measure=strict has"]),
    "another task": (_choose("workload", "img2img"), ["workload.task=txt2img, and workload=img2img has img2img"]),
    "another Python": (_choose("runtime", "mine"), ["runtime=mine", "write 'current'"]),
    "no such recipe": (_choose("recipe", "nonsense"), ["recipe=nonsense", "baseline, "]),
    "no such group": (_choose("atention", "sdpa"), ["choices.atention is of no group"]),
    "several": (_choose("attention", "sdpa (changed: backend) (changed: hub)"), ["choices.attention"]),
}


@pytest.mark.parametrize("name", UNTRUE)
def test_a_label_of_a_file_that_is_not_true_is_refused(cli: Cli, tmp_path: Path, name: str) -> None:
    change, said = UNTRUE[name]
    _file(tmp_path / "f.yaml", cli("show", *CPU, "model=tiny")[1], change)
    code, out, err = cli("plan", "--recipe", "f.yaml")
    if said is None:
        assert code == 0, err
        return
    assert (code, out) == (2, ""), out
    assert err.count("\n") == 1, err
    assert "--recipe f.yaml" in err
    for part in said:
        assert part in err


def test_what_is_chosen_anew_needs_no_true_label(cli: Cli, tmp_path: Path) -> None:
    _file(tmp_path / "f.yaml", cli("show", *CPU)[1], _choose("attention", "nonsense"))
    code, out, err = cli("plan", "--recipe", "f.yaml", "attention=math")
    assert code == 0, err
    assert "attention=math" in out


def test_the_launch_of_a_file_is_none_of_the_cell_and_its_label_not_taken(cli: Cli, tmp_path: Path) -> None:
    """A file has no values of that group, so what is launched is what the command says."""
    _file(tmp_path / "f.yaml", cli("show", *CPU)[1], _choose("launch", "cluster"))
    assert compose_requests([], lock=tmp_path / "f.yaml")[0].cell.choices["launch"] == "local"


@pytest.mark.parametrize("change", [("steps: 20", "steps: 3"), ("seed: 0", "seed: 1")])
def test_ids_that_are_not_those_of_the_values_are_refused(cli: Cli, tmp_path: Path, change: tuple[str, str]) -> None:
    text = cli("show", *CPU, "model=tiny")[1]
    workload = text.index("\nworkload:")
    edited = text[:workload] + text[workload:].replace(*change)
    assert edited != text
    (tmp_path / "f.yaml").write_text(edited)
    code, _, err = cli("plan", "--recipe", "f.yaml", "workload.batch_size=2")
    assert code == 2
    first = text.splitlines()[0]
    assert first.removeprefix("# diffopt ") in err
    line = err.split("write '")[1].split("'")[0]
    (tmp_path / "f.yaml").write_text(edited.replace(first, line))
    assert cli("plan", "--recipe", "f.yaml")[0] == 0
    (tmp_path / "f.yaml").write_text(edited.replace(f"{first}\n", ""))
    assert cli("plan", "--recipe", "f.yaml")[0] == 0
    (tmp_path / "f.yaml").write_text(edited.replace(first, first.split(", cell")[0]))
    code, _, err = cli("plan", "--recipe", "f.yaml")
    assert code == 2
    assert "does not give the ids of a recipe and of a cell" in err


def test_an_option_of_ones_own_is_read_back_where_it_is(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "options" / "attention").mkdir(parents=True)
    option = tmp_path / "options" / "attention" / "mine.yaml"
    option.write_text("defaults: [sdpa, _self_]\ncomponents: [denoiser, vae]\n")
    text = cli("show", *CPU, "attention=mine", "--config-dir", "options")[1]
    (tmp_path / "f.yaml").write_text(text)
    assert cli("show", "--recipe", "f.yaml", "--config-dir", "options")[1] == text
    code, _, err = cli("show", "--recipe", "f.yaml")
    assert code == 2
    assert "attention=mine" in err
    assert 'write attention: "sdpa (changed: components)"' in err
    assert "--config-dir" in err
    option.write_text("defaults: [sdpa, _self_]\n")
    assert "attention=mine has [denoiser]" in cli("show", "--recipe", "f.yaml", "--config-dir", "options")[2]
    option.write_text("defaults: [sdpa, _self_]\ncomponents: [vae]\n")
    assert labels_of(text.replace("attention: mine", "attention: 'sdpa (changed: components)'"), tmp_path)[
        "attention"
    ] == ("sdpa (changed: components)")


def labels_of(text: str, folder: Path) -> dict[str, str]:
    (folder / "given.yaml").write_text(text)
    return dict(compose_requests([], lock=folder / "given.yaml")[0].cell.choices)


def test_a_recipe_s_label_tells_which_of_its_options_are_others(cli: Cli, tmp_path: Path) -> None:
    code, text, _ = cli("show", *CPU, "recipe=pytorch2", "precision=fp32", "compile=none", "quant=int8_weight")
    label = "pytorch2 (changed: precision, compile)"
    assert yaml.safe_load(text)["choices"]["recipe"] == label
    (tmp_path / "f.yaml").write_text(text)
    assert cli("plan", "--recipe", "f.yaml")[0] == 0
    assert cli("plan", "--recipe", "f.yaml", "layout=default")[0] == 0, "what is chosen anew is no lie of the file"
    again = cli("show", "--recipe", "f.yaml", "precision=fp16")[1]
    assert yaml.safe_load(again)["choices"]["recipe"] == "pytorch2 (changed: compile)"
    for lie in ("pytorch2", "baseline (changed: compile)", "accelerate_inference"):
        (tmp_path / "f.yaml").write_text(text.replace(f"'{label}'", lie if " " not in lie else f"'{lie}'"))
        code, _, err = cli("plan", "--recipe", "f.yaml")
        assert code == 2
        assert f"choices.recipe: the options of recipe={lie.split()[0]} are changed in " in err
