"""Options of the group ``workload``: what each task asks for, what a null becomes, what does not go together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from support.tiny import tiny

from diffopt.config import Composer
from diffopt.config.catalogue import first_line_of_option
from diffopt.config.resolve import compose_requests
from diffopt.config.workload import resolve_workload
from diffopt.models.pictures import SHIPPED
from diffopt.recipe.plan import make_plan
from diffopt.schema.model import TASKS
from diffopt.schema.workload import NEEDS, PICTURES, Workload
from diffopt.steps.cache.support import iterations_for_cache

Cli = Callable[..., tuple[int, str, str]]

COMPOSER = Composer()
BARE = COMPOSER.compose(["workload=auto"]).data["workload"]
MODEL: dict[str, Any] = {
    "name": "any",
    "task": "txt2img",
    "pipelines": dict.fromkeys(TASKS, "SomePipeline"),
    "prompt": "a cat",
    "height": 64,
    "width": 96,
    "steps": 20,
    "guidance": 4.5,
    "frames": 49,
    "frame_step": 4,
    "cascade": [],
}
STAGES = [{"name": "second", "steps": 50, "guidance": 4.0}, {"name": "third", "steps": 75, "guidance": 9.0}]


def resolved(
    *, model: dict[str, Any] | None = None, typed: tuple[str, ...] = (), base: Any = BARE, **values: Any
) -> Any:
    """The workload of ``base`` with ``values``, as the command line gives them, on a model that can do everything."""
    return resolve_workload({**base, **values}, {**MODEL, **(model or {})}, frozenset(typed))


def against(*words: str) -> list[str]:
    """The reasons of a plan that are about its workload."""
    (request,) = compose_requests(["hardware=cpu", *words])
    reasons = make_plan(request.cell).reasons
    return [reason for reason in reasons if reason.startswith("workload.")]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shipped(name: str) -> dict[str, str]:
    return {"path": name, "content": sha256(SHIPPED / f"{name}.png")}


def mine(folder: Path, name: str = "mine.png", colour: str = "red") -> str:
    Image.new("RGB", (8, 8), colour).save(folder / name)
    return str(folder / name)


# The YAMLs.


def test_there_is_an_option_for_each_task_and_one_for_the_models_own() -> None:
    assert set(COMPOSER.options("workload")) == {"auto", *TASKS}


@pytest.mark.parametrize("option", ["auto", *TASKS])
def test_every_option_lists_every_key_and_differs_in_its_task_alone(option: str) -> None:
    keys = {*Workload.model_fields, "prompt", "prompts_file"} - {"prompts"}
    data = COMPOSER.compose([f"workload={option}"]).data["workload"]
    assert set(data) == keys
    assert {key for key in keys if data[key] != BARE[key]} == (set() if option == "auto" else {"task"})
    assert data["task"] == (None if option == "auto" else option)
    own = COMPOSER.read_option("workload", option)
    assert set(own) == (keys if option == "auto" else {"defaults", "task"})
    file = COMPOSER.option_file("workload", option)
    assert len(first_line_of_option(file)) < 90
    text = file.read_text(encoding="utf-8")
    assert all(word in text for word in ("# What: ", "# Helps: ", "# Hurts: "))


def test_auto_is_the_default() -> None:
    assert COMPOSER.compose([]).choices["workload"] == "auto"


# What a null becomes.


@pytest.mark.parametrize("task", TASKS)
def test_what_the_task_asks_for_is_filled_in_and_nothing_else(task: str) -> None:
    customary = {
        "image": shipped("scene"),
        "mask": shipped("mask"),
        "control": shipped("edges"),
        "strength": {"img2img": 0.8, "inpaint": 1.0}.get(task),
        "control_scale": 1.0,
        "frames": 49,
    }
    data = COMPOSER.compose([f"workload={task}"]).data["workload"]
    workload = resolve_workload(data, MODEL, frozenset())
    for key, value in customary.items():
        assert workload[key] == (value if key in NEEDS[task] else None), key
    assert Workload.from_plain(workload).task == task
    assert resolve_workload(workload, MODEL, frozenset()) == workload, "resolving it again changes nothing"


def test_the_rest_is_the_models() -> None:
    workload = resolved()
    assert workload["prompts"] == ["a cat"]
    assert [workload[key] for key in ("task", "height", "width", "steps", "guidance")] == ["txt2img", 64, 96, 20, 4.5]
    assert resolved(model={"task": "edit"})["task"] == "edit"
    assert resolved(model={"task": "edit"}, task="img2img")["task"] == "img2img"
    given = resolved(task="img2img", height=8, width=16, steps=3, guidance=0, strength=0.5, prompt="a dog")
    assert [given[key] for key in ("height", "width", "steps", "guidance", "strength")] == [8, 16, 3, 0, 0.5]
    assert given["prompts"] == ["a dog"]


def test_a_model_that_lacks_the_task_is_left_to_its_plan() -> None:
    lacking = {"pipelines": {"txt2img": "SomePipeline"}, "frames": None, "frame_step": None}
    assert resolved(model=lacking, task="txt2video")["frames"] == 1
    assert resolved(model=lacking, task="txt2video", frames=6)["frames"] == 6
    assert resolved(model=lacking, task="inpaint")["mask"] == shipped("mask")
    without = {key: value for key, value in MODEL.items() if key not in ("frames", "frame_step", "cascade")}
    assert resolve_workload({**BARE, "task": "img2video"}, without, frozenset())["frames"] == 1


# A cascade.


def test_later_stages_have_the_workloads_steps_and_their_own_guidance() -> None:
    cascade = {"cascade": STAGES}
    assert resolved(model=cascade)["later_stages"] == [
        {"steps": 50, "guidance": 4.0},
        {"steps": 75, "guidance": 9.0},
    ]
    assert resolved(model=cascade, later_stages=[], steps=2, guidance=1.0)["later_stages"] == [
        {"steps": 2, "guidance": 4.0},
        {"steps": 2, "guidance": 9.0},
    ]
    own = [{"steps": 5, "guidance": 1.5}, {"steps": 6, "guidance": 2.5}]
    assert resolved(model=cascade, later_stages=own, steps=2)["later_stages"] == own
    assert resolved()["later_stages"] == []


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("deepfloyd_if", "has 2 stages after its first one (deepfloyd_if_ii_m, deepfloyd_if_x4)"),
        ("sd15", "has 0 stages after its first one (none)"),
    ],
)
def test_a_wrong_number_of_later_stages(model: str, said: str) -> None:
    (reason,) = against(*tiny(model), "workload.later_stages=[{steps: 5, guidance: 1.5}]")
    assert reason.startswith("workload.later_stages with 1 stages: ")
    assert said in reason
    assert reason.endswith("workload.later_stages=null fills them in")


# What does not go together.


@pytest.mark.parametrize(("key", "value"), [("image", "scene"), ("mask", "mask"), ("control", "edges")])
@pytest.mark.parametrize("task", TASKS)
def test_a_picture_for_a_task_that_takes_none(task: str, key: str, value: str) -> None:
    words = ("model=sd15", "model.weights=tiny", f"workload={task}", f"workload.{key}={value}")
    if key in NEEDS[task]:
        assert resolved(task=task, **{key: "edges"})[key] == shipped("edges")
        assert against(*words) == []
        return
    assert resolved(task=task, **{key: value})[key] == shipped(value), "kept, for the plan to refuse"
    able = {"image": "workload=img2img or workload=inpaint", "mask": "workload=inpaint"}
    none = "leave it out (null): model sd15 has no pipeline for controlnet"
    remedy = f"choose {able[key]}, or leave it out (null)" if key in able else none
    (reason,) = against(*words)
    assert reason.startswith(f"workload.{key}={value}: workload={task} takes no {key}; {remedy}")


@pytest.mark.parametrize(
    ("task", "values"), [("txt2img", {"strength": 0.5}), ("img2img", {"control_scale": 2.0}), ("edit", {"frames": 9})]
)
def test_a_setting_for_a_task_that_takes_none(task: str, values: dict[str, Any]) -> None:
    ((key, value),) = values.items()
    (reason,) = against("model=sd15", "model.weights=tiny", f"workload={task}", f"workload.{key}={value}")
    assert reason.startswith(f"workload.{key}={value}: workload={task} takes no {key}; ")
    assert "leave it out (null)" in reason


@pytest.mark.parametrize(("frames", "near"), [(2, "1 or 5"), (48, "45 or 49"), (50, "49 or 53")])
def test_frames_that_the_vae_cannot_make(frames: int, near: str) -> None:
    (reason,) = against("model=wan21_t2v_1_3b", "model.weights=tiny", f"workload.frames={frames}")
    assert reason.startswith(f"workload.frames={frames}: ")
    assert reason.endswith(f"a multiple of 4 frames and one more; use {near}")


@pytest.mark.parametrize("frames", [1, 5, 81])
def test_frames_that_it_can_make(frames: int) -> None:
    assert against("model=wan21_t2v_1_3b", "model.weights=tiny", f"workload.frames={frames}") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("workload.height=60",),
            ["workload.height=60: model sd15 draws in blocks of 8 pixels; use 56"],
        ),
        (("workload.height=4", "workload.width=12"), ["use 8", "use 8 or 16"]),
    ],
)
def test_sizes_that_the_vae_cannot_make(words: tuple[str, ...], said: list[str]) -> None:
    found = against("model=sd15", "model.weights=tiny", *words)
    assert len(found) == len(said)
    for reason, part in zip(found, said, strict=True):
        assert part in reason


@pytest.mark.parametrize(
    ("steps", "strength", "enough"),
    [(3, 0.3, "0.33"), (1, 0.8, "1"), (4, 0.3, None), (2, 0.5, None), (1, 1.0, None), (4, 1e-320, "0.25")],
)
@pytest.mark.parametrize("model", ["sd15", "flux_schnell"])
def test_a_strength_that_leaves_no_step(model: str, steps: int, strength: float, enough: str | None) -> None:
    words = (*tiny(model), "workload=inpaint", f"workload.steps={steps}", f"workload.strength={strength}")
    (request,) = compose_requests(["hardware=cpu", *words])
    if enough is None or (model == "flux_schnell" and iterations_for_cache(request.cell.workload) > 0):
        assert against(*words) == []
    else:
        (reason,) = against(*words)
        assert reason.endswith(f"no step at all; use a strength of {enough} or more, or more steps")


def test_an_unsuited_value_ends_no_sweep(cli: Cli) -> None:
    swept = (
        "model=sd15,wan21_t2v_1_3b",
        "model.weights=tiny",
        "hardware=cpu",
        "workload.height=64,72",
        "workload.width=64",
    )
    code, out, err = cli("plan", "-m", *swept)
    assert (code, err) == (0, "")
    lines = [line for line in out.splitlines() if "workload.height=" in line and "model=" in line]
    assert [line.split()[1] for line in lines] == ["ok", "ok", "ok", "refused"], out


# On the command line.

SD15 = ("model=sd15", "model.weights=random", "hardware=cpu")

MISTAKES = {
    "unknown task": (["workload.task=txt2pic"], ["workload.task=txt2pic", "'img2img'"]),
    "task of another type": (["workload.task=[a]"], ["workload.task=[a]"]),
    "task and picture": (["workload.task=txt2pic", "workload.image=a.png"], ["workload.task=txt2pic"]),
    "no such file": (["workload=img2img", "workload.image=no.png"], ["workload.image=no.png", "no such file"]),
    "not a picture": (["workload=img2img", "workload.image=notes.txt"], ["notes.txt is not a picture"]),
    "a folder": (["workload=img2img", "workload.image=./"], ["this is a folder"]),
    "no such name": (["workload=inpaint", "workload.mask=maks"], ["Did you mean mask?"]),
    "number": (["workload=img2img", "workload.image=5"], ["workload.image=5: give the path"]),
    "below a null": (["workload=img2img", "workload.image.content=null"], ["workload.image"]),
    "strength of 0": (["workload=img2img", "workload.strength=0"], ["workload.strength=0", "greater than 0"]),
    "strength above 1": (
        ["workload=img2img", "workload.strength=1.5"],
        ["workload.strength=1.5", "less than or equal"],
    ),
    "strength in words": (["workload=img2img", "workload.strength=much"], ["workload.strength=much"]),
    "frames in words": (["workload=txt2video", "workload.frames=many"], ["workload.frames=many"]),
    "no frames": (["workload=txt2video", "workload.frames=0"], ["workload.frames=0"]),
    "stages in words": (["workload.later_stages=many"], ["workload.later_stages=many"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_paragraph_and_exit_code_2(cli: Cli, tmp_path: Path, name: str) -> None:
    words, said = MISTAKES[name]
    (tmp_path / "notes.txt").write_text("hello")
    code, out, err = cli("plan", *SD15, *words)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1, err
    for part in said:
        assert part in err


def test_a_picture_counts_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    def asked(*words: str) -> Any:
        return compose_requests([*SD15, "workload=img2img", *words])[0].cell

    first = asked(f"workload.image={mine(tmp_path)}")
    again = asked(f"workload.image={mine(tmp_path, 'other.png')}")
    assert first.id == again.id
    assert first.workload.image != again.workload.image
    assert asked(f"workload.image={mine(tmp_path, colour='blue')}").id != first.id
    assert asked().id != first.id


# In a recipe file.


@pytest.fixture
def shown(cli: Cli, tmp_path: Path) -> Path:
    """A recipe file of an inpainting with a picture of the user's."""
    mine(tmp_path)
    code, text, err = cli("show", *SD15, "workload=inpaint", "workload.image=mine.png")
    assert code == 0, err
    (tmp_path / "lock.yaml").write_text(text)
    return tmp_path / "lock.yaml"


def test_a_recipe_file_names_the_pictures(cli: Cli, shown: Path) -> None:
    workload = yaml.safe_load(shown.read_text())["workload"]
    file = shown.parent / "mine.png"
    assert workload["image"] == {"path": "./mine.png", "content": sha256(file)}
    assert workload["mask"] == shipped("mask")
    assert [workload[key] for key in ("control", "strength", "later_stages")] == [None, 1.0, []]
    assert cli("show", "--recipe", str(shown))[1] == shown.read_text()
    assert compose_requests([], lock=shown)[0].cell.workload.image.path == str(file)


def test_a_changed_picture_is_found_out_and_can_be_taken(cli: Cli, shown: Path) -> None:
    mine(shown.parent, colour="blue")
    code, out, err = cli("plan", "--recipe", str(shown))
    assert (code, out) == (2, "")
    assert "workload.image.content=null takes it" in err
    assert err.count("\n") == 1
    code, out, err = cli("show", "--recipe", str(shown), "workload.image.content=null")
    assert code == 0, err
    assert yaml.safe_load(out)["workload"]["image"]["content"] == sha256(shown.parent / "mine.png")
    (shown.parent / "mine.png").unlink()
    assert "there is no such file" in cli("plan", "--recipe", str(shown))[2]


def test_the_pictures_of_a_recipe_file_can_be_overridden(shown: Path, tmp_path: Path) -> None:
    other = mine(tmp_path, "other.png", "green")

    def read(*words: str) -> Any:
        return compose_requests(words, lock=shown)[0].cell.workload

    assert read(f"workload.image={other}").image.model_dump() == {"path": other, "content": sha256(Path(other))}
    assert read("workload.image=null").image.path == "scene"
    assert read("workload.mask=edges", "workload.strength=0.5").mask.path == "edges"
    assert read("workload.strength=0.5").strength == 0.5
    plain = read("workload=txt2img")
    assert [getattr(plain, key) for key in PICTURES] == [None, None, None]
    assert read("workload.task=img2img").mask is None, "which was the other task's"
    swept = compose_requests([f"workload.image={other},scene"], lock=shown, multirun=True)
    assert [request.cell.workload.image.path for request in swept] == [other, "scene"]


def test_a_recipe_file_from_before_there_were_tasks(shown: Path, tmp_path: Path, cli: Cli) -> None:
    code, text, err = cli("show", *SD15)
    assert code == 0, err
    data = yaml.safe_load(text)
    new = compose_requests([], lock=_written(tmp_path / "new.yaml", data))[0].cell
    later = ("image", "mask", "control", "strength", "control_scale", "frames", "later_stages")
    for key in (*later, "resample", "resize_mode"):
        del data["workload"][key]
    old = _written(tmp_path / "old.yaml", data)
    assert compose_requests([], lock=old)[0].cell.id == new.id
    (changed,) = compose_requests(["workload.task=img2img", "workload.image=edges"], lock=old)
    assert changed.cell.workload.image.path == "edges"


def test_a_plan_shows_later_stages_and_the_length_of_a_video(cli: Cli) -> None:
    _, shown, _ = cli("plan", "model=deepfloyd_if", "hardware=a100", "workload.steps=20")
    assert shown.splitlines()[1:5] == [
        "model deepfloyd_if on a100, txt2img, 1 x 64x64, 20 steps",
        "then deepfloyd_if_ii_m, upscale, 20 steps",
        "then deepfloyd_if_x4, upscale, 20 steps",
        "steps, in the order they touch each pipeline:",
    ]
    _, shown, _ = cli("plan", "model=ltx_video", "model.weights=tiny", "workload.frames=9")
    assert "txt2video, 1 x 64x64 x 9 frames," in shown.splitlines()[1]


def _written(path: Path, data: Any) -> Path:
    path.write_text(yaml.safe_dump(data))
    return path
