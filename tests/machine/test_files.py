"""diffopt.machine.files: a file is there whole or not at all."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffopt.errors import UsageError
from diffopt.machine.files import (
    file_that_appears_whole,
    first_link,
    links_below,
    make_private_folders,
    open_new_file,
    refuse_link,
    remove_whatever,
    write_bytes,
    write_json,
    write_text,
)

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


HALF = """
import os, signal, sys
from pathlib import Path
from diffopt.machine.files import file_that_appears_whole
with file_that_appears_whole(Path(sys.argv[1])) as file:
    file.write(b"ne")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_wrote_in_part_goes_with_the_next_and_that_of_a_living_one_stays(tmp_path):
    path, other = tmp_path / "file", tmp_path / ".other.1.tmp"
    other.touch()
    subprocess.run([sys.executable, "-c", HALF, str(path)], check=False)
    assert len(os.listdir(tmp_path)) == 2
    with file_that_appears_whole(path) as file:
        file.write(b"first")
        write_bytes(path, b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert {*tmp_path.iterdir()} == {path, other}


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


def test_what_is_made_is_for_its_user_whatever_the_umask_and_what_was_there_keeps_its_mode(tmp_path):
    (tmp_path / "shared").touch()
    (tmp_path / "shared").chmod(0o664)
    before = os.umask(0)
    try:
        write_text(tmp_path / "text", "")
        write_text(tmp_path / "shared", "")
        open_new_file(tmp_path / "log").close()
        make_private_folders(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("text", "shared", "log", "a", "a/b")}
    assert modes == {"text": 0o600, "shared": 0o664, "log": 0o600, "a": 0o700, "a/b": 0o700}


@pytest.mark.parametrize("write", [lambda path: write_text(path, "new"), lambda path: open_new_file(path).close()])
@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path, write, link):
    (tmp_path / "canary").write_text("alive")
    link(tmp_path / "name", tmp_path / "canary")
    write(tmp_path / "name")
    assert (tmp_path / "canary").read_text() == "alive"
    assert not (tmp_path / "name").is_symlink()
    assert (tmp_path / "name").read_text() in ("new", "")


def test_whatever_is_removed_is_not_what_a_link_leads_to(tmp_path):
    home = tmp_path / "home"
    (home / "deep").mkdir(parents=True)
    (home / "deep" / "canary").write_text("alive")
    (tmp_path / "link").symlink_to(home)
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder" / "in").mkdir(parents=True)
    (tmp_path / "folder" / "in" / "link").symlink_to(home / "deep")
    for name in ("link", "file", "pipe", "folder", "none"):
        remove_whatever(tmp_path / name)
    assert os.listdir(tmp_path) == ["home"]
    assert (home / "deep" / "canary").read_text() == "alive"


def test_links_are_found_and_not_followed(tmp_path):
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (tmp_path / "entry").symlink_to(root)
    assert first_link(tmp_path / "entry", tmp_path / "entry/a/b/none") is None, "the root may be one"
    assert list(links_below(root)) == []
    (root / "a" / "up").symlink_to(tmp_path)
    (root / "a" / "b" / "gone").symlink_to("nothing")
    assert sorted(links_below(root)) == [root / "a/b/gone", root / "a/up"]
    assert first_link(root, root / "a/up/root/a") == root / "a/up"
    with pytest.raises(UsageError, match="a/up is a symbolic link; below a study none is followed"):
        refuse_link(root, root / "a/up/root/a")
    refuse_link(root, root / "a/b")
    assert first_link(root, root / "a/b/gone") == root / "a/b/gone"


def test_nothing_else_replaces_files():
    files = [*(ROOT / "diffopt").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    assert len(files) > 100
    own = [str(path.relative_to(ROOT)) for path in files if re.search(r"\bos\.(replace|rename)\(", path.read_text())]
    assert own == ["diffopt/machine/files.py"]
