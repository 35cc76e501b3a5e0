"""``show`` -> ``--recipe`` keeps the ids, overrides change what they name, tampered files are explained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from diffopt.config.resolve import compose_requests

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["recipe=pytorch2", "model=sd15", "hardware=a100"],
        ["recipe=accelerate_inference", "model=sdxl", "model.weights=random", "hardware=h100"],
        ["workload.negative_prompt=x", "workload.batch_size=3", "measure=strict", "compile=dynamic"],
    ],
)
def test_a_shown_recipe_reads_back_with_the_same_ids(cli: Cli, tmp_path: Path, words: list[str]) -> None:
    code, text, err = cli("show", *words)
    assert code == 0, err
    (tmp_path / "mine.yaml").write_text(text)
    (asked,) = compose_requests(words)
    (read,) = compose_requests([], lock=tmp_path / "mine.yaml")
    assert (read.cell.id, read.cell.recipe.id) == (asked.cell.id, asked.cell.recipe.id)
    assert read.cell == asked.cell
    assert read.cell.choices == asked.cell.choices
    assert asked.cell.recipe.id in text
    code, again, _ = cli("show", "--recipe", "mine.yaml")
    assert again == text


def test_overrides_on_a_recipe_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(cli("show", "recipe=pytorch2", "hardware=a100")[1])
    (base,) = compose_requests([], lock=tmp_path / "mine.yaml")
    (other,) = compose_requests(
        ["compile=none", "workload.batch_size=4", "workload.prompt=cat"], lock=tmp_path / "mine.yaml"
    )
    assert other.cell.recipe.compile.kind == "none"
    assert other.cell.choices["compile"] == "none"
    assert other.cell.workload.batch_size == 4
    assert other.cell.workload.prompts == ("cat",)
    assert other.cell.recipe.precision == base.cell.recipe.precision
    swept = compose_requests(["workload.batch_size=1,2"], lock=tmp_path / "mine.yaml", multirun=True)
    assert [request.cell.workload.batch_size for request in swept] == [1, 2]


def test_what_is_customary_follows_the_model_and_what_is_kept_is_noted(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(cli("show", "model=tiny", "workload.steps=2", "hardware=cpu")[1])
    (asked,) = compose_requests(["model=sdxl", "hardware=cpu"])
    (found,) = compose_requests(["model=sdxl"], lock=tmp_path / "mine.yaml")
    assert found.cell.workload == asked.cell.workload.model_copy(update={"steps": 2})
    (note,) = found.cell.notes
    assert "mine.yaml was made for model=tiny; workload.steps=2 is kept (customary: 50)" in note
    assert "height, width, guidance, prompts follow the model" in note
    assert f"note: {note}" in cli("plan", "--recipe", "mine.yaml", "model=sdxl")[1]
    (typed,) = compose_requests(
        ["model=sdxl", "workload.steps=2", "workload.height=512", "workload.width=512", "workload.prompt=x"],
        lock=tmp_path / "mine.yaml",
    )
    assert typed.cell.notes == ("model=sdxl: mine.yaml was made for model=tiny; guidance follows the model",)


# Each customary value of one of the two is another than the other's.
OTHER_MODELS = {
    "the task": (["model=wan21_t2v_1_3b"], ["model=sd15"]),
    "the picture that a task needs": (["model=flux_kontext"], ["model=sd15"]),
    "frames": (["model=sd15"], ["model=ltx_video"]),
    "a cascade": (["model=sdxl"], ["model=deepfloyd_if"]),
    "no cascade any more": (["model=deepfloyd_if"], ["model=sdxl"]),
    "the control map": (["model=sd15_controlnet"], ["model=sdxl"]),
    "tiny weights": (["model=sdxl"], ["model.weights=tiny"]),
    "a value of the model itself": (["model=sdxl"], ["model.height=512", "model.steps=7"]),
    "a chosen task stays": (["model=sd15", "workload=img2img"], ["model=sdxl"]),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_a_file_on_another_model_is_what_composing_on_that_model_gives(tmp_path: Path, cli: Cli, name: str) -> None:
    before, after = OTHER_MODELS[name]
    (tmp_path / "mine.yaml").write_text(cli("show", *before, "hardware=h100")[1])
    (found,) = compose_requests(after, lock=tmp_path / "mine.yaml")
    kept = [word for word in before if not (word.startswith("model=") and after[0].startswith("model="))]
    (asked,) = compose_requests([*kept, *after, "hardware=h100"])
    assert found.cell.workload == asked.cell.workload


def test_a_file_on_its_own_model_has_no_note(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(cli("show", "model=sd15", "workload.steps=2", "hardware=cpu")[1])
    for words in ([], ["model=sd15"], ["quant=int8_weight"], ["workload.steps=3"], ["workload=img2img", "model=sdxl"]):
        assert compose_requests(words, lock=tmp_path / "mine.yaml")[0].cell.notes == ()


def _write(path: Path, change: Callable[[dict[str, object]], object], text: str) -> None:
    data = yaml.safe_load(text)
    change(data)
    path.write_text(yaml.safe_dump(data))


TAMPERED = {
    "unknown key": (lambda d: d["recipe"]["compile"].update(new=1), "compile.new"),
    "missing key": (lambda d: d["recipe"]["compile"].pop("kind"), "no 'kind'"),
    "unknown kind": (lambda d: d["recipe"]["compile"].update(kind="fulll"), "Kinds of compile"),
    "missing group": (lambda d: d["recipe"].pop("quant"), "quant"),
    "unknown group": (lambda d: d["recipe"].update(quantt={"kind": "none"}), "'quantt' is not a key"),
    "prompt beside prompts": (lambda d: d["workload"].update(prompt="x"), "'workload.prompt' is not a key there"),
    "choices of another kind": (lambda d: d["choices"].update(compile=5), "'choices'"),
    "missing workload key": (lambda d: d["workload"].pop("height"), "workload.height"),
    "infinity": (lambda d: d["workload"].update(guidance=float("inf")), "workload.guidance"),
    "bytes": (lambda d: d["workload"].update(negative_prompt=b"x"), "workload.negative_prompt"),
    "extra section": (lambda d: d.update(hydra={}), "must have the keys"),
    "other content": (lambda d: d["recipe"]["model"].update(content="0" * 64), "not those that the recipe was made"),
    "code": (lambda d: d["recipe"]["compile"].update(_target_="os.system"), "_target_"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_file_is_explained(cli: Cli, tmp_path: Path, name: str) -> None:
    change, said = TAMPERED[name]
    _write(tmp_path / "mine.yaml", change, cli("show", "hardware=cpu")[1])
    code, out, err = cli("plan", "--recipe", "mine.yaml")
    assert code == 2, out
    assert said in err
    assert "Traceback" not in err


def test_python_tags_are_not_executed(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("recipe: !!python/object/apply:os.system ['touch pwned']\n")
    code, _, err = cli("plan", "--recipe", "mine.yaml")
    assert code == 2
    assert "not YAML" in err
    assert not (tmp_path / "pwned").exists()


def test_diff(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("diff", "baseline", "pytorch2", "hardware=a100")
    assert code == 0
    assert "precision.dtype: float32 -> float16" in out.splitlines()
    (tmp_path / "mine.yaml").write_text(cli("show", "recipe=pytorch2", "hardware=a100")[1])
    assert cli("diff", "mine.yaml", "pytorch2", "hardware=a100")[:2] == (0, "")
    assert cli("diff", "baseline")[0] == 2


def test_ids_do_not_depend_on_paths_or_names(tmp_path: Path) -> None:
    (first,) = compose_requests(["compile=default"])
    (tmp_path / "compile").mkdir()
    (tmp_path / "compile" / "mine.yaml").write_text("# The same under another name.\ndefaults: [default, _self_]\n")
    (second,) = compose_requests(["compile=mine"], folders=[tmp_path])
    assert first.cell.id == second.cell.id
    assert first.cell.choices["compile"] != second.cell.choices["compile"]


def test_plan_json(cli: Cli) -> None:
    code, out, _ = cli("plan", "-m", "quant=none,fp8_dynamic", "hardware=a100", "precision=bf16", "--json")
    cells = json.loads(out)["cells"]
    assert code == 0
    assert [cell["status"] for cell in cells] == ["ok", "refused"]
    assert set(cells[0]) == {"cell_id", "choices", "status", "reasons", "notes", "called", "steps", "code"}
    assert "8.9" in cells[1]["reasons"][0]
    assert cells[0]["steps"][0] == {"order": "load", "group": "precision", "kind": "dtype"}
