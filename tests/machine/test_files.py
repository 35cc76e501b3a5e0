"""diffopt.machine.files: a file is there whole or not at all."""

import os
import re
from pathlib import Path

import pytest

from diffopt.machine.files import file_that_appears_whole, write_bytes, write_json, write_text

ROOT = Path(__file__).parents[2]


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with file_that_appears_whole(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old", "not yet"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_one_that_does_not_get_whole_leaves_the_old_one_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def half() -> None:
        with file_that_appears_whole(path) as file:
            file.write(b"ne")
            raise error

    with pytest.raises(error):
        half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_bytes_text_and_json(tmp_path):
    write_bytes(tmp_path / "bytes", b"\x00\xff")
    write_text(tmp_path / "text", "größer\r\n")
    write_json(tmp_path / "json", {"b": "ä", "a": [1]})
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert (tmp_path / "text").read_bytes() == "größer\r\n".encode()
    assert (tmp_path / "json").read_bytes() == '{\n  "b": "ä",\n  "a": [\n    1\n  ]\n}\n'.encode()


def test_what_is_no_json_or_no_text_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="nan"):
        write_json(tmp_path / "json", {"a": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "text", "\udc80")
    assert os.listdir(tmp_path) == []


def test_the_mode_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "text", "")
    finally:
        os.umask(before)
    assert (tmp_path / "text").stat().st_mode & 0o777 == 0o640


def test_nothing_else_replaces_files():
    files = [*(ROOT / "diffopt").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    assert len(files) > 100
    own = [str(path.relative_to(ROOT)) for path in files if re.search(r"\bos\.(replace|rename)\(", path.read_text())]
    assert own == ["diffopt/machine/files.py"]
