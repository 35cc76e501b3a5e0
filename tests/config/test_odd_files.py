"""Every key that names a file, given what is none, never ends, or is too large: one paragraph, and no wait."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from diffopt.machine.reading import MIB
from diffopt.models.resolve import PACKAGED

Cli = Callable[..., tuple[int, str, str]]
HUGE = 1024 * MIB

KEYS: dict[str, Callable[[str], list[str]]] = {
    "prompts": lambda file: [f"workload.prompts_file={file}"],
    "picture": lambda file: ["workload=img2img", f"workload.image={file}"],
    "mask": lambda file: ["workload=inpaint", "model=sd15_inpaint", "model.weights=tiny", f"workload.mask={file}"],
    "lora": lambda file: ["lora=fused", f"lora.path={file}"],
    "recipe file": lambda file: ["--recipe", file],
}
SUFFIX = {"picture": ".png", "mask": ".png", "lora": ".safetensors", "recipe file": ".yaml"}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(path.name)


def huge(path: Path) -> None:
    """Of zeros that take no room on the disk."""
    with path.open("wb") as file:
        file.truncate(HUGE)


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (pipe, "a pipe"),
    "device": (device, "a device"),
    "socket": (listening, "a socket"),
    "folder": (Path.mkdir, "folder"),
    "huge": (huge, ""),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_names_a_file(
    key: str, kind: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, said = ODD[kind]
    make(Path(f"odd{SUFFIX.get(key, '.txt')}"))
    (odd,) = tmp_path.iterdir()
    code, out, err = cli("plan", *KEYS[key](f"./{odd.name}"))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert odd.name in err
    assert said in err
    assert kind != "huge" or key == "lora" or "is too large: it has 1024.0 MiB" in err


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "huge"])
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"])
def test_a_file_of_a_model(name: str, kind: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = Path(shutil.copytree(PACKAGED / "tiny", "mine")) / name
    place.unlink()
    monkeypatch.chdir(place.parent)
    ODD[kind][0](Path(place.name))
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("plan", "model=local", "model.path=mine")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "mine" in err


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "huge"])
def test_an_option_of_ones_own(kind: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conf/compile").mkdir(parents=True)
    ODD[kind][0](Path("conf/compile/mine.yaml"))
    code, out, err = cli("plan", "compile=mine")
    assert (code, out) == (2, "")
    assert "mine" in err
    assert cli("plan", "compile=none")[0] == 0


def test_prompts_that_are_too_many_go_into_no_row(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red star\n" * 100_000)
    code, _, err = cli("plan", f"workload.prompts_file={file}")
    assert code == 2
    assert "is too large: it has 1.0 MiB, and at most 1 MiB are read" in err


def test_a_file_that_says_no_size(cli: Cli) -> None:
    code, _, err = cli("plan", "workload.prompts_file=/proc/self/maps")
    assert code == 0 or "maps" in err


def test_a_header_with_very_many_dimensions(cli: Cli, tmp_path: Path) -> None:
    folder = shutil.copytree(PACKAGED / "tiny", tmp_path / "mine")
    header = b'{"x": {"dtype": "F32", "shape": [' + b"1," * 300_000 + b'1], "data_offsets": [0, 4]}}'
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"0000")
    code, _, err = cli("plan", "model=local", f"model.path={folder}")
    assert code == 2
    assert "its header describes the tensor 'x' wrongly" in err


def test_a_recipe_file_with_other_line_ends(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(cli("show", "compile=default")[1].replace("\n", "\r\n").encode("utf-8-sig"))
    assert cli("plan", "--recipe", str(file))[0] == 0
    assert yaml.safe_load(file.read_text(encoding="utf-8-sig"))["choices"]["compile"] == "default"
