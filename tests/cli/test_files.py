"""Files that are not what they should be, for every verb that reads them: one paragraph, exit code 1 or 2."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from support.powers import modes_of_files_count
from support.rows import a_cell, a_result

from diffopt.models.resolve import PACKAGED
from diffopt.results.study import Study

Cli = Callable[..., tuple[int, str, str]]
PLANS = ("plan --recipe recipe.yaml", "show --recipe recipe.yaml", "run --recipe recipe.yaml study=new")
MINE = ("plan layout=mine", "show layout=mine", "ls layout", "env", "run layout=mine hardware=a100 study=new")
MODEL = ("plan model=local model.path=model hardware=cpu", "show model=./model", "prefetch model=./model")
LORA = ("plan model=sd15 lora=fused lora.path=lora.safetensors",)
PROMPTS = ("plan workload.prompts_file=prompts.txt", "run workload.prompts_file=prompts.txt study=new hardware=a100")
PICTURE = ("plan model=sd15 workload=img2img workload.image=picture.png",)
READS = ("report s", "report s --csv", "compare s s", "report s --pictures sheet.png")
STUDY = (*READS, "run hardware=a100 study=s")
# a place in the user's folder, and what reads it
PLACES: dict[str, tuple[str, ...]] = {
    "recipe.yaml": (*PLANS, "diff recipe.yaml baseline", "check --recipe recipe.yaml"),
    "conf": (*MINE, "diff baseline mine"),
    "conf/layout": MINE,
    "conf/layout/mine.yaml": MINE,
    "conf/recipe/mine.yaml": ("plan recipe=mine", "diff baseline mine", "ls recipe", "check recipe=mine"),
    "conf/sweep/mine.yaml": ("plan -m sweep=mine", "ls sweep"),
    "elsewhere": ("plan --config-dir elsewhere", "ls layout --trust-config-dir elsewhere"),
    "model": MODEL,
    "model/model_index.json": MODEL,
    "model/unet": MODEL,
    "model/unet/config.json": MODEL,
    "model/unet/diffusion_pytorch_model.safetensors": MODEL[:1],
    "lora.safetensors": LORA,
    "prompts.txt": PROMPTS,
    "picture.png": PICTURE,
    "studies": STUDY,
    "studies/s": STUDY,
    "studies/s/cells": STUDY,
    "studies/s/cells/*": READS,
    "studies/s/cells/*/*": READS,
    "studies/s/cells/*/*/result.json": READS,
    "out/sheet.png": ("report s --pictures out/sheet.png",),
    "out": ("report s --pictures out/sheet.png", "report --published pytorch2 --charts out/charts"),
    "cache": (*MODEL[:1], "plan model=./model lora=none"),
}
FAST = {"recipe.yaml", "conf/layout/mine.yaml", "model/model_index.json"}


def deny(place: Path) -> None:
    place.chmod(0)


def not_utf8(place: Path) -> None:
    place.write_bytes(b"\xff\xfe\x00\x81 \xc3\x28\n")


def as_folder(place: Path) -> None:
    place.unlink()
    place.mkdir()


def as_file(place: Path) -> None:
    shutil.rmtree(place)
    place.write_text("a file")


def as_dead_link(place: Path) -> None:
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.symlink_to("gone")


def as_circle(place: Path) -> None:
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.symlink_to(place.name)


HARMS = [deny, not_utf8, as_folder, as_file, as_dead_link, as_circle]


@pytest.fixture(scope="module")
def recipe() -> str:
    """What `show` prints."""
    from diffopt.recipe.lock import recipe_to_yaml

    return recipe_to_yaml(a_cell())


@pytest.fixture
def user(tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder with one of everything that the verbs read."""
    options = {
        "layout/mine": "# mine\nkind: none\n",
        "recipe/mine": "# mine\ndefaults: [pytorch2, _self_]\nworkload: {steps: 2}\n",
        "sweep/mine": "# mine\naxes: {compile: [none, regional]}\n",
    }
    for name, text in options.items():
        for folder in ("conf", "elsewhere"):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / f"{name}.yaml").write_text(text)
    (tmp_path / "recipe.yaml").write_text(recipe)
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    header = json.dumps({"unet.conv_in.lora_A.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "lora.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    shutil.copytree(PACKAGED / "tiny", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "diffopt").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sheet.png").touch()
    study = Study.create("s")
    study.keep(a_result())
    yield tmp_path
    for path in [tmp_path, *tmp_path.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o700)


def check(cli: Cli, words: str) -> int:
    """The verb ends in order, and says why in one paragraph where it did not do what it was asked."""
    with modes_of_files_count():
        code, _, err = cli(*words.split())
    assert code in (0, 1, 2), words
    told = ("diffopt: left out: ", "diffopt: note: ")  # of what a verb does without
    paragraphs = [line for line in err.splitlines() if line.startswith("diffopt: ") and not line.startswith(told)]
    assert len(paragraphs) <= 1, err
    assert code != 2 or len(paragraphs) == 1, f"{words}: {err}"
    return code


def cases() -> Iterator[object]:
    for place in PLACES:
        for harm in HARMS:
            suits = "." in Path(place).name
            if harm in (not_utf8, as_folder) and not suits or harm is as_file and suits:
                continue
            fast = place in FAST and harm in (deny, not_utf8)
            marks = () if fast else pytest.mark.slow
            yield pytest.param(place, harm, id=f"{place}-{harm.__name__}", marks=marks)


@pytest.mark.parametrize(("place", "harm"), [*cases()])
def test_every_verb_that_reads_it_says_so(user: Path, cli: Cli, place: str, harm: Callable[[Path], None]) -> None:
    (spoiled,) = user.glob(place)
    harm(spoiled)
    codes = [check(cli, words) for words in PLACES[place]]
    if place in FAST:
        assert codes == [2 if not words.startswith(("ls", "env")) else 0 for words in PLACES[place]]


def test_a_folder_that_may_not_be_entered_is_not_an_empty_one(user: Path, cli: Cli) -> None:
    """Of rows that cannot be read is told, beside those that can; a model's part is there, and says why it is not."""
    other = a_result(a_cell("workload.seed=7"))
    Study.open("s").keep(other)
    folder = Path("studies/s/cells") / other.cell_id
    folder.chmod(0)
    Path("model/unet").chmod(0)
    with modes_of_files_count():
        code, out, err = cli("report", "s", "--csv")
        model = cli("plan", "model=./model", "hardware=cpu")
    assert (code, len(out.splitlines())) == (0, 2)
    assert err == f"diffopt: left out: {folder} cannot be read: Permission denied.\n"
    assert (model[0], model[2].endswith("model/unet cannot be read: Permission denied\n")) == (2, True)


LONG = "x" * 300
NAMES = [
    f"plan --recipe {LONG}",
    f"plan --config-dir {LONG}",
    f"ls {LONG}",
    f"plan model={LONG}",
    f"plan model=local model.path={LONG}",
    f"plan model=sd15 lora=fused lora.path={LONG}",
    f"plan workload.prompts_file={LONG}",
    f"plan model=sd15 workload=img2img workload.image={LONG}",
    f"plan layout={LONG}",
    f"plan study={LONG}",
    f"run study={LONG}",
    f"run study=./{LONG}",
    f"report {LONG}",
    f"report ./{LONG}",
    f"compare {LONG} ./{LONG}",
    f"diff {LONG} baseline",
    f"report s --pictures {LONG}",
    f"report --published pytorch2 --charts {LONG}",
    f"report --published {LONG}",
    f"check --recipe {LONG}",
    f"plan runtime.python={LONG} runtime.name=x",
    f"plan model=./{'y/' * 3000}",
]


@pytest.mark.parametrize("words", [pytest.param(words, marks=pytest.mark.slow, id=words[:40]) for words in NAMES])
def test_a_name_that_is_too_long(user: Path, cli: Cli, words: str) -> None:
    assert check(cli, words) != 0


@pytest.mark.slow
def test_the_working_directory_that_may_not_be_entered(user: Path, cli: Cli) -> None:
    os.chmod(user, 0)
    for words in ("ls", "plan", "show", "report s", "run study=new hardware=a100", "env"):
        check(cli, words)
