"""diffopt.machine.temporary: nothing stays of a folder, be it that its process was killed."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from diffopt.machine.temporary import OWNER, temporary_folder

HOLDER = """
import os, sys, time
from diffopt.machine.temporary import temporary_folder
with temporary_folder("held") as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "file").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Where temporary folders are made in these tests."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.fixture
def holder():
    """Another process that has such a folder; and the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_it_is_ours_alone_and_then_gone(place):
    with temporary_folder("cell") as folder:
        assert folder.parent == place
        assert folder.name.startswith("diffopt-cell-")
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "more").mkdir()
    assert list(place.iterdir()) == []


def test_it_is_gone_after_an_error(place):
    with pytest.raises(ValueError, match="mine"), temporary_folder("cell"):
        raise ValueError("mine")
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next(place, holder):
    process, left = holder
    with temporary_folder("cell") as folder:
        assert set(place.iterdir()) == {left, folder}, "a living one keeps its own"
    process.kill()
    process.wait()
    assert (left / "deep" / "file").exists()
    with temporary_folder("cell") as folder:
        assert list(place.iterdir()) == [folder]


def test_it_may_lie_elsewhere_with_what_is_left_there(place):
    for folder in ("elsewhere/diffopt-aot-left0000", "diffopt-cell-left0000"):
        (place / folder).mkdir(parents=True)
        (place / folder / OWNER).touch()
    with temporary_folder("aot", place / "elsewhere") as folder:
        assert list((place / "elsewhere").iterdir()) == [folder]
    assert (place / "diffopt-cell-left0000").exists()


def test_nothing_else_is_touched(place):
    elsewhere = place / "elsewhere"
    (elsewhere / "kept").mkdir(parents=True)
    (elsewhere / OWNER).touch()
    (place / "diffopt-link-00000000").symlink_to(elsewhere)
    (place / "diffopt-file-00000000").touch()
    (place / "diffopt-without-owner000").mkdir()
    (place / "diffopt-without-owner000" / "kept").touch()
    (place / "diffopt-odd-00000000").mkdir()
    (place / "diffopt-odd-00000000" / OWNER).symlink_to(elsewhere / OWNER)
    (place / "other").mkdir()
    (place / "other" / OWNER).touch()
    before = sorted(place.rglob("*"))
    with temporary_folder("cell"):
        pass
    assert sorted(place.rglob("*")) == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_stays(place):
    theirs = place / "diffopt-cell-theirs00"
    theirs.mkdir()
    (theirs / OWNER).touch()
    os.chown(theirs, 65534, 65534)
    with temporary_folder("cell"):
        pass
    assert (theirs / OWNER).exists()


def test_one_that_was_never_used_goes(place):
    (place / "diffopt-cell-empty000").mkdir()
    with temporary_folder("cell"):
        pass
    assert list(place.iterdir()) == []
