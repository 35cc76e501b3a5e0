"""What a process is started with, however odd: an answer or a paragraph, from the real command line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml
from support.forked import Commands

from diffopt.models.resolve import PACKAGED

BYTE = "\udcff"  # as Python has one that is not UTF-8
NOWHERE = "import tempfile\ndef nowhere(*_): raise FileNotFoundError(2, 'no usable one')\n"
NOWHERE += "tempfile._get_default_tempdir = nowhere; tempfile.tempdir = None\n"
SLOW = pytest.mark.slow
OTHER_PYTHON = ["run", "runtime=python", "runtime.name=x", "runtime.python=python3", "study=s"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_a_working_directory_that_is_gone(commands: Commands, folder: Path) -> None:
    (folder / "gone").mkdir()
    answer = commands("plan", cwd=folder / "gone", gone=True)
    assert answer.told == (2, "", "diffopt: The working directory does not exist any more; change to another one.\n")


def test_no_place_for_temporary_files(commands: Commands, folder: Path) -> None:
    code, out, err = commands(*OTHER_PYTHON, cwd=folder, before=NOWHERE).told
    said = "No folder for temporary files can be written to here. Name one: TMPDIR=/a/folder."
    assert (code, out, err) == (1, "", f"diffopt: {said}\n")


@SLOW
@pytest.mark.parametrize("place", ["/nonexistent", "relative", "", "/dev/null", "x" * 300])
@pytest.mark.parametrize("variable", ["HOME", "TMPDIR", "XDG_CACHE_HOME"])
def test_a_folder_of_the_users_that_is_not_there(variable: str, place: str, commands: Commands, folder: Path) -> None:
    own = {"XDG_CACHE_HOME": None} if variable == "HOME" else {}
    for words in (["plan"], ["ls", "compile"], ["run", "hardware=a100", "study=s"]):
        answer = commands(*words, cwd=folder, env={**own, variable: place})
        assert answer.code in (0, 1)
        assert "Traceback" not in answer.err


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=SLOW), pytest.param("cp1252", marks=SLOW)])
def test_signs_that_the_streams_cannot_show(encoding: str, commands: Commands, folder: Path) -> None:
    words = ["show", 'workload.negative_prompt="größer 日本"']
    code, out, err = commands(*words, cwd=folder, env={"PYTHONIOENCODING": encoding, "LC_ALL": "C"}).told
    assert (code, err) == (0, "")
    assert out.isascii()
    assert yaml.safe_load(out)["workload"]["negative_prompt"] == "größer 日本"


@SLOW
@pytest.mark.parametrize("columns", ["0", "-1", "abc", "", "1", "9" * 30, "²"])
def test_columns(columns: str, commands: Commands, folder: Path) -> None:
    for words in (["plan", "--help"], ["ls"], ["plan", "--nope"]):
        answer = commands(*words, cwd=folder, env={"COLUMNS": columns})
        assert answer.code == (2 if "--nope" in words else 0)
        assert "Traceback" not in answer.err


# ---- names that are not UTF-8


def model(place: Path) -> None:
    shutil.copytree(PACKAGED / "tiny", place)


def test_a_model_whose_folder_is_not_named_in_utf8(commands: Commands, folder: Path) -> None:
    model(folder / f"m{BYTE}")
    code, out, err = commands("plan", f"model=./m{BYTE}", "hardware=cpu", cwd=folder).told
    assert (code, out) == (2, "")
    assert err.startswith("diffopt: model.path=")
    assert err.endswith("/m\\udcff: recipes and rows are UTF-8, and this is not; name the file otherwise.\n")


@SLOW
def test_names_that_are_not_utf8_lie_about(commands: Commands, folder: Path) -> None:
    """In the config folder, a model, the studies, and on the way to the working directory: what needs none works."""
    here = folder / f"w{BYTE}"
    for name in (f"conf/{BYTE}", "conf/layout", "studies"):
        (here / name).mkdir(parents=True)
    for name in (f"conf/{BYTE}/x.yaml", f"conf/layout/{BYTE}.yaml"):
        (here / name).write_text("# mine\nkind: none\n")
    (here / f"studies/{BYTE}/cells").mkdir(parents=True)
    model(folder / "m")
    (folder / f"m/{BYTE}.txt").touch()
    (folder / f"m/unet/{BYTE}.json").write_text("{}")
    works = [
        ["ls"],
        ["ls", "layout"],
        ["plan"],
        ["plan", f"model={folder}/m", "hardware=cpu"],
        ["plan", "--json"],
        ["env", "--json"],
        ["run", "-m", "hardware=a100", "study=s"],
        ["report", "s"],
    ]
    for words in works:
        answer = commands(*words, cwd=here)
        assert (answer.code, "Traceback" in answer.err) == (0, False), (words, answer)
    answer = commands("report", "gone", cwd=here)
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert os.fsencode(BYTE) == b"\xff"


@SLOW
@pytest.mark.parametrize(
    "words",
    [
        [BYTE],
        ["plan", BYTE],
        ["plan", f"--{BYTE}"],
        ["plan", f"compile={BYTE}"],
        ["plan", f"workload.prompt={BYTE}"],
        ["plan", f'workload.prompt="{BYTE}"'],
        ["plan", f'workload.prompts_file="{BYTE}"'],
        ["plan", f'workload.image="{BYTE}.png"', "workload=img2img"],
        ["plan", "--recipe", BYTE],
        ["plan", "--config-dir", BYTE],
        ["check", "--recipe", BYTE],
        ["diff", BYTE, "baseline"],
        ["ls", BYTE],
        ["report", BYTE],
        ["report", f"./{BYTE}"],
        ["compare", BYTE, f"x={BYTE}", f"x={BYTE}"],
        ["report", "--published", BYTE],
        ["plan", f"reference=recipe:{BYTE}"],
    ],
    ids=lambda words: " ".join(words).replace(BYTE, "BYTE"),
)
def test_arguments_that_are_not_utf8(words: list[str], commands: Commands, folder: Path) -> None:
    answer = commands(*words, cwd=folder)
    assert (answer.code, answer.out) == (2, "")
    assert "Traceback" not in answer.err
    assert answer.err.count("\n") == 1 or answer.err.startswith("usage: ")


def test_a_path_to_a_program_is_none_of_paths(commands: Commands, folder: Path) -> None:
    """``./ls`` is a file here, and not the one that PATH has; nor is a pipe a program, whatever its mode."""
    words = ["run", "runtime=python", "runtime.name=x", "study=s"]
    code, _, err = commands(*words, "runtime.python=./ls", cwd=folder).told
    assert (code, err.count("\n")) == (2, 1)
    assert "runtime.python=./ls is no program here" in err
