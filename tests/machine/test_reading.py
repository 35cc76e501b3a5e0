"""Reading what somebody names."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from diffopt.errors import UsageError
from diffopt.machine.log import last_words_of_log
from diffopt.machine.reading import MIB, opened_file, read_file


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x" * MIB)
    assert read_file(file, "key", MIB) == b"x" * MIB
    with pytest.raises(UsageError, match=r"key=f is too large: it has 1\.0 MiB, and at most 0\.5 MiB are read"):
        read_file(file, "key=f", MIB // 2)
    with opened_file(file, "key") as opened:
        assert opened.read(3) == b"xxx"


def test_one_that_says_no_size_is_read_up_to_its_limit_too() -> None:
    with pytest.raises(UsageError, match="key is too large: it has more, and at most"):
        read_file(Path("/proc/self/status"), "key", 10)


def test_a_pipe_is_not_waited_for_whoever_writes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    with pytest.raises(UsageError, match="key: this is a pipe, not a file"):
        read_file(tmp_path / "f", "key", MIB)
    writer = threading.Thread(target=lambda: os.close(os.open(tmp_path / "f", os.O_RDWR)))
    writer.start()
    with pytest.raises(UsageError, match="a pipe"):
        read_file(tmp_path / "f", "key", MIB)
    writer.join()


@pytest.mark.parametrize("follow", [True, False])
def test_only_a_file_is_read_and_a_link_to_one_where_links_are_followed(tmp_path: Path, follow: bool) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert read_file(tmp_path / "file", "key", MIB, follow=follow) == b"content"
    for path, why in {tmp_path / "folder": "a folder", tmp_path / "pipe": "a pipe", Path("/dev/zero"): "a dev"}.items():
        with pytest.raises(UsageError, match=f"key: this is {why}"):
            read_file(path, "key", MIB, follow=follow)
    if follow:
        assert read_file(tmp_path / "link", "key", MIB) == b"content"
    else:
        with pytest.raises(UsageError, match="key: this is a symbolic link"):
            read_file(tmp_path / "link", "key", MIB, follow=False)


def test_what_is_not_there_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "f", "key", MIB)


def test_of_a_long_log_the_end_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with log.open("wb") as file:
        file.truncate(1024 * MIB)
        file.seek(0, os.SEEK_END)
        file.write("\nthe last word é\n".encode())
    assert last_words_of_log(log) == "the last word é"


def test_a_log_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret")
    (tmp_path / "link").symlink_to("secret")
    os.mkfifo(tmp_path / "pipe")
    for name, why in {"link": "a symbolic link", "pipe": "a pipe", "none": "No such file"}.items():
        said = last_words_of_log(tmp_path / name)
        assert said is not None
        assert "cannot be read: " in said
        assert why in said
