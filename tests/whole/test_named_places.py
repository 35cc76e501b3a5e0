"""Every key, flag, argument and variable that names a file or a folder, given what is none: a paragraph, and no wait.

``PLACES`` is the list of all of them; one that diffopt has and the list lacks fails :func:`test_nothing_is_forgotten`.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from PIL import Image
from support.forked import Commands
from support.places import CONF, REPO
from support.rows import a_result
from support.slow import first_ones

from diffopt.cli.main import FLAGS, VERBS
from diffopt.config import consent
from diffopt.models.resolve import PACKAGED
from diffopt.recipe.named_files import files_named_by_recipe
from diffopt.results.study import Study

HUGE = 1024**3
MOST_SECONDS, MOST_MEMORY = 20.0, 250  # of the processor; MiB
SHA = "0" * 64


class Place(NamedTuple):
    """What takes the name of a place, and what it is to be."""

    words: Callable[[str], list[str]]
    wants: str = "file"  # or folder
    ends: str = ""  # of its name
    code: int = 2


def key(name: str, *others: str, **more: object) -> Place:
    return Place(lambda place: ["plan", *others, f"{name}={place}"], **more)  # type: ignore[arg-type]


def flag(verb: str, name: str, *others: str, **more: object) -> Place:
    return Place(lambda place: [verb, *others, name, place], **more)  # type: ignore[arg-type]


def argument(verb: str, *others: str, **more: object) -> Place:
    return Place(lambda place: [verb, place, *others], **more)  # type: ignore[arg-type]


INPAINT = ("workload=inpaint", "model=sd15_inpaint", "model.weights=tiny")
CONTROL = ("workload=controlnet", "model=sd15_controlnet", "model.weights=tiny")
REFUSED = ("run", "hardware=a100", "study=new")
PLACES: dict[str, Place] = {
    "workload.prompts_file": key("workload.prompts_file", ends=".txt"),
    "quality.prompts_file": key("quality.prompts_file", ends=".txt"),
    "workload.image": key("workload.image", "workload=img2img", ends=".png"),
    "workload.mask": key("workload.mask", *INPAINT, ends=".png"),
    "workload.control": key("workload.control", *CONTROL, ends=".png"),
    "lora.path": key("lora.path", "lora=fused", ends=".safetensors"),
    "lora.swap_path": key("lora.swap_path", "lora=hotswap", ends=".safetensors"),
    "model.path": key("model.path", "model=local", wants="folder"),
    "model": key("model", wants="folder"),
    "runtime.python": Place(lambda place: ["run", "runtime=python", "runtime.name=x", f"runtime.python={place}"]),
    "launch.compile_artifact.load": key(
        "launch.compile_artifact.load", f"launch.compile_artifact.sha256={SHA}", ends=".zip"
    ),
    "study": Place(lambda place: ["run", "-m", "hardware=a100", f"study={place}"], wants="folder"),
    "--recipe": flag("plan", "--recipe", ends=".yaml"),
    "--recipes": flag("check", "--recipe", ends=".yaml"),
    "--config-dir": flag("plan", "--config-dir", wants="folder"),
    "--trust-config-dir": flag("ls", "--trust-config-dir", wants="folder"),
    "--cfg --config-dir": flag("show", "--config-dir", "--cfg", "job", wants="folder"),
    "--pictures": flag("report", "--pictures", "s", ends=".png"),
    "--charts": flag("report", "--charts", "--published", "pytorch2", wants="folder"),
    "diff RECIPE": argument("diff", "baseline", ends=".yaml"),
    "report STUDY": argument("report", wants="folder"),
    "compare STUDY": argument("compare", "s", wants="folder"),
}
VARIABLES: dict[str, tuple[str, ...]] = {  # by the words of a command that takes it; what it names is a folder
    "DIFFOPT_CACHE_DIR": REFUSED,
    "TORCHINDUCTOR_CACHE_DIR": REFUSED,
    "TRITON_CACHE_DIR": REFUSED,
    "CUDA_CACHE_PATH": REFUSED,
    "XDG_CACHE_HOME": REFUSED,
    "HOME": REFUSED,
    "TMPDIR": REFUSED,
    "HF_HOME": ("prefetch", "model=sd15", "hardware=cpu"),
}


def pipe(path: Path) -> None:
    os.mkfifo(path)
    path.chmod(0o755)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(os.path.relpath(path))


def huge(path: Path) -> None:
    """Of zeros that take no room on the disk."""
    with path.open("wb") as file:
        file.truncate(HUGE)


def denied_file(path: Path) -> None:
    path.touch()
    path.chmod(0)


def denied_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0)


def circle(path: Path) -> None:
    path.symlink_to(path.name)


ODD: dict[str, dict[str, Callable[[Path], object]]] = {
    "file": {
        **{"a pipe": pipe, "a device": device, "a socket": listening, "a folder": Path.mkdir},
        **{"huge": huge, "denied": denied_file, "circle": circle},
    },
    "folder": {
        **{"a pipe": pipe, "a device": device, "a socket": listening, "a file": Path.touch},
        **{"huge": huge, "denied": denied_folder, "circle": circle},
    },
}
FAST = {("workload.prompts_file", "a socket"), ("--config-dir", "denied"), ("model.path", "denied")}
FAST |= {("launch.compile_artifact.load", "denied")}
# what is no mistake: a name that nothing has to lie at, and a file that nobody reads before it is known to be the right
FREE = {("--pictures", "a device"), ("--pictures", "huge"), ("launch.compile_artifact.load", "huge")}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory, with a study of one row."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}-cache")
    Study.create("s").keep(a_result())
    yield tmp_path
    for path in (tmp_path / "odd").parent.glob("odd*"):
        if not path.is_symlink():
            path.chmod(0o700)


def cases() -> Iterator[object]:
    for name, place in PLACES.items():
        for kind in ODD[place.wants]:
            marks = () if (name, kind) in FAST else pytest.mark.slow
            yield pytest.param(name, kind, id=f"{name}-{kind}", marks=marks)


@pytest.mark.parametrize(("name", "kind"), [*cases()])
def test_a_place_that_is_none(name: str, kind: str, commands: Commands, folder: Path) -> None:
    place = PLACES[name]
    odd = f"./odd{place.ends}"
    ODD[place.wants][kind](folder / odd)
    before = everything(folder)
    answer = commands(*place.words(odd), cwd=folder)
    assert answer.seconds < MOST_SECONDS
    assert answer.memory < MOST_MEMORY
    assert "Traceback" not in answer.err
    assert answer.err.count("\n") == (answer.code != 0), answer.err
    if (name, kind) in FREE:
        return
    assert answer.code in (1, 2) if kind == "denied" else answer.code == 2, answer
    assert answer.out == "" or name == "--charts"  # whose table is printed before
    assert "odd" in answer.err
    if kind in ("a pipe", "a device", "a socket") and place.ends and not name.startswith("--pictures"):
        assert f"this is {kind}, not a file" in answer.err
    assert everything(folder) == before


def everything(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Whatever lies below a folder, with what changes where somebody writes to it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        found[str(path)] = about.st_mode, about.st_size, about.st_mtime_ns
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in ODD["folder"] if kind != "denied"])
@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_that_names_no_folder(variable: str, kind: str, commands: Commands, folder: Path) -> None:
    ODD["folder"][kind](odd := folder / "odd")
    own = {"XDG_CACHE_HOME": None} if variable == "HOME" else {}
    answer = commands(*VARIABLES[variable], cwd=folder, env={**own, variable: str(odd)})
    assert answer.seconds < MOST_SECONDS
    assert answer.memory < MOST_MEMORY
    assert "Traceback" not in answer.err
    assert answer.code == 1
    if variable != "TMPDIR":  # another one is taken
        assert str(odd) in answer.err
        assert "=/a/folder" in answer.err or variable == "HF_HOME"
        assert answer.err.count("\n") == 1
        assert not (folder / "studies" / "new").exists()


# ---- links that lead out of the folder of an option


@pytest.fixture
def options(folder: Path) -> Path:
    """The working directory, with an option for each key that names a file, and what it may lead to elsewhere."""
    outside = folder.parent / "outside"
    shutil.rmtree(outside, ignore_errors=True)
    outside.mkdir()
    (outside / "canary.txt").write_text("the canary\n")
    Image.new("RGB", (64, 64)).save(outside / "canary.png")
    (outside / "canary.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    shutil.copytree(PACKAGED / "tiny", outside / "canary")
    return folder


@pytest.mark.parametrize("name", first_ones([n for n in PLACES if n.split(".")[0] in consent.FILES and "." in n], 1))
def test_a_link_that_leads_out_of_the_folder_of_an_option(name: str, commands: Commands, options: Path) -> None:
    group, leaf = name.split(".")
    given = dict(word.split("=") for word in PLACES[name].words("x")[1:] if "=" in word)
    sibling = given.pop(group, "fast" if group == "quality" else "auto")
    file = options / "conf" / group / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump({"defaults": [sibling, "_self_"], leaf: f"odd{PLACES[name].ends}"}))
    (options / f"odd{PLACES[name].ends}").symlink_to(options.parent / "outside" / f"canary{PLACES[name].ends}")
    others = [f"{key}={value}" for key, value in given.items() if key != name]
    answer = commands("plan", f"{group}=mine", *others, cwd=options)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert f"names {name}=odd" in answer.err
    assert "which was not opened" in answer.err


# ---- the list is whole


LOOKS_LIKE_A_PLACE = re.compile(r"(^|[._])(path|file|files|folder|dir|python|load|image|mask|control|study)$")
NO_PLACES = {"launch.deadlines.load"}  # though its name has such a word
ARGUMENTS = {"study": ("STUDY",), "sides": ("STUDY",), "recipes": ("RECIPE",)}  # of Verb.words those that are places


def test_nothing_is_forgotten() -> None:
    keys: set[str] = set()
    for file in CONF.rglob("*.yaml"):
        group = file.parent.name if file.parent != CONF else ""
        if group not in ("recipe", "sweep"):
            data = yaml.safe_load(file.read_text())
            keys |= {name for name in _dotted(data, f"{group}." if group else "") if LOOKS_LIKE_A_PLACE.search(name)}
    sections = {
        "model": {"path": "x"},
        "lora": {"path": "x", "swap_path": "x"},
        "workload": {name: "x.png" for name in ("prompts_file", "image", "mask", "control")},
    }
    keys |= {place.typed for place in files_named_by_recipe(sections)}
    keys |= {name for name, settings in FLAGS.items() if settings.get("metavar") in ("FILE", "DIR")}
    keys |= {f"{name} {word}" for name, verb in VERBS.items() for word in ARGUMENTS.get(verb.words, ())}
    assert keys - NO_PLACES <= PLACES.keys()
    assert all(settings.get("type") is not Path or name in PLACES for name, settings in FLAGS.items())


def _dotted(data: object, start: str) -> Iterator[str]:
    if isinstance(data, dict):
        for name, inner in data.items():
            yield f"{start}{name}"
            yield from _dotted(inner, f"{start}{name}.")


def test_no_variable_is_forgotten() -> None:
    named = re.compile(r'"([A-Z][A-Z_]+_(?:DIR|HOME|PATH|FOLDER))"')
    found = {name for file in (REPO / "diffopt").rglob("*.py") for name in named.findall(file.read_text())}
    assert found <= {*VARIABLES, "LD_LIBRARY_PATH", "CUDA_HOME"}
