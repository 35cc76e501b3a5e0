"""machine.content: hashes of files, and what is remembered of big ones."""

import hashlib
import json
import os
import time
from functools import partial
from pathlib import Path

import pytest

from diffopt.errors import UsageError
from diffopt.machine import content
from diffopt.machine.content import sha256_of, sha256_of_folder, sha256_of_opened
from diffopt.machine.remembered import remembered_file


@pytest.fixture
def read(monkeypatch):
    """The names of the files whose bytes were read; every file counts as big, and the process remembers nothing."""
    names = []
    digest = content._digest.__wrapped__

    def noted(path, stamp):
        names.append(path.name)
        return digest(path, stamp)

    monkeypatch.setattr(content, "_digest", noted)
    monkeypatch.setattr(content, "BIG", 0)
    return names


@pytest.fixture
def memory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "diffopt" / "content.json"


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model" / "unet.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


def test_it_is_the_sha256_of_names_sizes_and_bytes(weights, memory):
    line = f"unet.safetensors 7 {hashlib.sha256(b'weights').hexdigest()}\n"
    assert sha256_of_folder(weights.parent, [weights]) == hashlib.sha256(line.encode()).hexdigest()
    assert not memory.exists()  # the file is small


def test_a_big_file_is_read_once(weights, memory, read):
    first = sha256_of_folder(weights.parent, [weights])
    assert sha256_of_folder(weights.parent, [weights]) == first
    assert read == ["unet.safetensors"]
    assert list(memory.parent.iterdir()) == [memory]
    (entry,) = json.loads(memory.read_text()).values()
    assert entry["sha256"] == hashlib.sha256(b"weights").hexdigest()


def test_the_threshold_is_what_it_says(weights, memory, read, monkeypatch):
    monkeypatch.setattr(content, "BIG", 7)
    sha256_of_folder(weights.parent, [weights])
    assert not memory.exists()


@pytest.mark.parametrize("keep_time", [True, False])
def test_changed_bytes_are_read_again_also_with_the_old_mtime(weights, memory, read, keep_time):
    before, stat = sha256_of_folder(weights.parent, [weights]), weights.stat()
    time.sleep(0.02)  # the clock of a file system ticks every few milliseconds
    weights.write_bytes(b"WEIGHTS")
    if keep_time:
        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert sha256_of_folder(weights.parent, [weights]) != before
    assert len(read) == 2


def test_a_replaced_file_is_read_again(weights, memory, read):
    before = sha256_of_folder(weights.parent, [weights])
    other = weights.with_name("other")
    other.write_bytes(b"WEIGHTS")
    other.replace(weights)
    assert sha256_of_folder(weights.parent, [weights]) != before


def test_a_file_that_changes_while_it_is_read_is_not_remembered(weights, memory, monkeypatch, read):
    def digest(path, stamp):
        path.write_bytes(b"changing")
        return "0" * 64

    monkeypatch.setattr(content, "_digest", digest)
    sha256_of_folder(weights.parent, [weights])
    assert not memory.exists()


def test_files_that_are_gone_are_forgotten(weights, memory, read):
    other = weights.with_name("other")
    other.write_bytes(b"other")
    sha256_of_folder(weights.parent, [weights, other])
    other.unlink()
    sha256_of_folder(weights.parent, [weights])
    os.utime(weights, ns=(0, 0))
    sha256_of_folder(weights.parent, [weights])
    assert list(json.loads(memory.read_text())) == [str(weights)]


@pytest.mark.parametrize(
    "spoiled",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"\xff",
        b"[" * 100_000,
        b'{"KEY": 5}',
        b'{"KEY": {"sha256": 5}}',
        b'{"KEY": {"sha256": "x"}}',
    ],
)
def test_a_spoiled_memory_is_made_anew(weights, memory, read, spoiled):
    first = sha256_of_folder(weights.parent, [weights])
    stamp = content.file_stamp(weights)._asdict()
    text = spoiled.replace(b"KEY", str(weights).encode()).replace(b'{"sha', json.dumps(stamp)[:-1].encode() + b', "sha')
    memory.write_bytes(text)
    assert sha256_of_folder(weights.parent, [weights]) == first
    assert len(read) == 2
    assert sha256_of_folder(weights.parent, [weights]) == first
    assert len(read) == 2


def test_a_place_that_takes_no_files_costs_only_time(weights, memory, read):
    memory.parent.parent.write_text("a file where the folder belongs")
    assert sha256_of_folder(weights.parent, [weights]) == sha256_of_folder(weights.parent, [weights])
    assert len(read) == 2


def test_where_the_memory_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    file = partial(remembered_file, content.MEMORY)
    for given in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert file() == Path("/home/me/.cache/diffopt/content.json")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/mine")
    assert file() == Path("/var/mine/diffopt/content.json")

    def home():
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert file() is None


def test_what_is_no_file_is_a_usage_error(tmp_path):
    (tmp_path / "link").symlink_to("nothing")
    (tmp_path / "folder").mkdir()
    for name in ("link", "folder"):
        with pytest.raises(UsageError, match=f"{name} is not a file"):
            sha256_of_folder(tmp_path, [tmp_path / name])


def test_of_one_file_and_of_an_open_one(weights, memory, read):
    expected = hashlib.sha256(b"weights").hexdigest()
    assert sha256_of(weights) == sha256_of(weights) == expected
    assert read == ["unet.safetensors"], "then it is remembered"
    with weights.open("rb") as file:
        assert file.read(3) == b"wei"
        assert sha256_of_opened(file) == expected
    with pytest.raises(FileNotFoundError):
        sha256_of(weights.with_name("gone"))
