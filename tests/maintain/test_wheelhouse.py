"""scripts/wheelhouse: what it asks pip for, by a stand-in for pip; with pip itself offline and (slow) for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from diffopt.cli.main import build_parser
from diffopt.config.resolve import compose_requests
from diffopt.errors import Refusal, UsageError
from scripts.maintain import wheelhouse
from scripts.maintain.wheelhouse import MARK, PIP, PRESENT, Target, make, needed, read_present, stand_in

FAKE_PIP = """
import json, os, sys
from pathlib import Path
verb, words = sys.argv[1], sys.argv[2:]
log = Path(os.environ["FAKE_PIP_LOG"])
with log.open("a") as file:
    links = [words[i + 1] for i, word in enumerate(words) if word == "--find-links"]
    found = sorted(path.name for link in links for path in Path(link).iterdir())
    pins = Path(words[words.index("-c") + 1]).read_text() if "-c" in words else ""
    file.write(json.dumps({"verb": verb, "words": words, "found": found, "pins": pins}) + "\\n")
if os.environ.get("FAKE_PIP_FAILS") == verb:
    sys.exit("some words\\nERROR: No matching distribution found for hydra-core")
if verb == "wheel":
    Path(words[words.index("-w") + 1], "antlr4_python3_runtime-4.9.3-py3-none-any.whl").write_bytes(b"x" * 1000)
if verb == "download":
    folder = Path(words[words.index("-d") + 1])
    (folder / "torch-2.11.0+there-py3-none-any.whl").write_bytes(b"x")
    (folder / "diffusers-0.42.1-py3-none-any.whl").write_bytes(b"x" * 2_000_000)
"""


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """The command, and what it was called with."""
    (tmp_path / "pip.py").write_text(FAKE_PIP)
    monkeypatch.setenv("FAKE_PIP_LOG", str(tmp_path / "log"))
    calls = lambda: [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]  # noqa: E731
    return (sys.executable, str(tmp_path / "pip.py")), calls


TARGET = Target("3.12", read_present(PRESENT, "the list"))


def test_it_downloads_what_is_missing_and_checks(pip, tmp_path):
    command, calls = pip
    wheels = make(tmp_path / "wheels", TARGET, pip=command)
    assert [wheel.name.split("-")[0] for wheel in wheels] == ["diffusers", "antlr4_python3_runtime"]  # no torch
    built, downloaded, checked = calls()
    assert built["words"][-1] == "antlr4-python3-runtime==4.9.3"
    for call in (downloaded, checked):
        words = call["words"]
        assert words[words.index("--python-version") + 1] == "3.12"
        assert {"--only-binary=:all:", "manylinux_2_28_x86_64", "manylinux2014_x86_64"} <= set(words)
        assert {"diffusers>=0.42,<0.43", "hydra-core>=1.3.8,<1.4"} <= set(words)
        assert f"torch-2.11.0{MARK}-py3-none-any.whl" in call["found"]
        pins = call["pins"].splitlines()
        assert f"torch==2.11.0{MARK}" in pins
        assert f"huggingface_hub==1.33.0{MARK}" in pins
        assert "diffusers==0.42.1" in pins  # tested, and not there
        assert not [pin for pin in pins if pin.startswith("torch==2.13")]
    assert checked["verb"] == "install"
    assert {"--dry-run", "--no-index", "--target"} <= set(checked["words"])


@pytest.mark.parametrize(("verb", "doing"), [("download", "find wheels"), ("install", "install the folder's wheels")])
def test_what_pip_says_is_told(pip, tmp_path, monkeypatch, verb, doing):
    monkeypatch.setenv("FAKE_PIP_FAILS", verb)
    with pytest.raises(Refusal, match=rf"{doing}.*No matching distribution found for hydra-core"):
        make(tmp_path / "wheels", TARGET, pip=pip[0])


def test_a_folder_with_something_in_it_is_refused(pip, tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "torch-1.0-py3-none-any.whl").touch()
    with pytest.raises(UsageError, match="not an empty folder"):
        make(tmp_path / "wheels", TARGET, pip=pip[0])


def test_the_command(pip, tmp_path, capsys):
    folder = tmp_path / "wheels"
    assert wheelhouse.main([str(folder)], pip=pip[0]) == 0
    out = capsys.readouterr().out
    assert "2.00 MB  diffusers-0.42.1" in out
    assert "2.00 MB  in 2 wheels" in out
    assert "python3 -m pip install --no-index --no-deps --no-compile --upgrade --target" in out
    shown = out.splitlines()[-1].split("python3 -m diffopt ")[1].split()
    build_parser(shown[0]).parse_intermixed_args(shown[1:])
    assert compose_requests([word for word in shown[2:] if word != "sweep=gpu_matrix"])[0].launch.minutes == 9
    assert wheelhouse.main([str(tmp_path / "small"), "--limit-mb", "1"], pip=pip[0]) == 1
    assert "more than --limit-mb 1" in capsys.readouterr().err
    assert wheelhouse.main([str(folder)], pip=pip[0]) == 2


@pytest.mark.parametrize("words", [["--present", "no-such-file"], ["--extra", "no-such-extra"]])
def test_wrong_usage(pip, tmp_path, capsys, words):
    assert wheelhouse.main([str(tmp_path / "wheels"), *words], pip=pip[0]) == 2
    assert "no-such" in capsys.readouterr().err


def test_a_list_is_what_pip_freeze_prints():
    lines = ["# comment", "torch==2.11.0+cu130", "", "pillow", "numpy>=1", "here @ file:///x", "-e git+x", "a==1 # b"]
    found = read_present(lines, "there.txt")
    assert [requirement.name for requirement in found] == ["torch", "a"]
    with pytest.raises(UsageError, match=r"there\.txt, line 1: 'torch 2\.11'"):
        read_present(["torch 2.11"], "there.txt")


def test_a_build_label_is_no_part_of_the_version(pip, tmp_path):
    target = Target("3.12", read_present(["torch==2.11.0+cu130"], "list"))
    make(tmp_path / "wheels", target, pip=pip[0])
    assert f"torch-2.11.0{MARK}-py3-none-any.whl" in pip[1]()[1]["found"]


def test_extras_are_needed_too():
    assert "peft>=0.18" in needed(wheelhouse.CHECKOUT, ["lora"])
    assert "peft>=0.18" not in needed(wheelhouse.CHECKOUT, [])


def resolve(folder, *wanted):
    """pip's own resolver on a folder, for the target."""
    command = [*PIP, "install", "--quiet", "--dry-run", "--no-index", "--find-links", str(folder), *TARGET.arguments]
    return subprocess.run([*command, "--target", str(folder / "site"), *wanted], capture_output=True, text=True)


def test_pip_takes_a_stand_in_for_the_package(tmp_path):
    stand_in(tmp_path, "huggingface_hub", f"1.33.0{MARK}")
    assert resolve(tmp_path, "huggingface-hub<3,>=1.32").returncode == 0
    missing = resolve(tmp_path, "huggingface-hub>=2")
    assert missing.returncode != 0
    assert "huggingface-hub" in missing.stderr


def test_the_scripts_paths_are_relative_to_where_it_is_called(tmp_path, monkeypatch):
    """In a copy of the checkout whose .venv is this Python."""
    copy, place = tmp_path / "copy", tmp_path / "place"
    for folder in (copy / "scripts", copy / ".venv/bin", place):
        folder.mkdir(parents=True)
    script = copy / "scripts/wheelhouse"
    script.write_bytes((wheelhouse.CHECKOUT / "scripts/wheelhouse").read_bytes())
    (copy / "scripts/venv").write_text("#!/bin/sh\n")
    (copy / ".venv/bin/python").write_text(f'#!/bin/sh\nPYTHONPATH={wheelhouse.CHECKOUT} exec {sys.executable} "$@"\n')
    for program in (script, copy / "scripts/venv", copy / ".venv/bin/python"):
        program.chmod(0o755)
    (place / "there.txt").write_text("torch 2.11\n")
    (place / "wheels").mkdir()
    (place / "wheels/x").touch()
    for words, says in (["wheels", "--present", "there.txt"], "there.txt, line 1"), (["wheels"], "not an empty folder"):
        done = subprocess.run([str(script), *words], capture_output=True, text=True, cwd=place)
        assert (done.returncode, says in done.stderr) == (2, True), done.stderr


@pytest.mark.slow
def test_the_script_for_real(tmp_path):
    """Needs the package index. The folder is within its limit, and without any one of its wheels pip misses it."""
    folder = tmp_path / "wheels"
    script = Path(wheelhouse.CHECKOUT) / "scripts" / "wheelhouse"
    done = subprocess.run([str(script), str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    wheels = list(folder.glob("*.whl"))
    names = {wheel.name.split("-")[0].lower() for wheel in wheels}
    assert {"diffusers", "torchao", "hydra_core", "antlr4_python3_runtime", "pydantic_core"} <= names
    assert not {"torch", "numpy", "transformers", "huggingface_hub"} & names
    assert not [name for name in names if name.startswith("nvidia_cu")]
    assert sum(wheel.stat().st_size for wheel in wheels) < wheelhouse.LIMIT_MB * 1e6
    assert all(zipfile.is_zipfile(wheel) for wheel in wheels)
    for requirement in TARGET.present:
        stand_in(folder, requirement.name, f"{str(requirement.specifier).removeprefix('==')}{MARK}")
    wanted = needed(wheelhouse.CHECKOUT, [])
    assert resolve(folder, *wanted).returncode == 0
    os.unlink(next(folder.glob("antlr4*")))
    assert "antlr4" in resolve(folder, *wanted).stderr
