"""A study from a stranger: its links lead nowhere, and what its rows name is a file of their own folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from support.processes import use_stub
from support.rows import a_cell, a_result, seeded

from diffopt.errors import UsageError
from diffopt.results.result import Artifacts, Result
from diffopt.results.rounds import read_ended_rounds
from diffopt.results.sheet import GAP, SIDE, contact_sheet
from diffopt.results.study import Study
from diffopt.run.row import prepare_folder_for_run

Cli = Callable[..., tuple[int, str, str]]
RUN = ("run", "-m", "hardware=cpu", "measure=quick", "workload.negative_prompt=ok", "study=s")
CANARY = "alive"
SECRET = (255, 0, 0)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What lies elsewhere: files that a run would delete, empty or write anew if it came there."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("notes.txt", "result.json", "cell.yaml", "log.txt", "holiday.png", "thesis.zip"):
        (home / name).write_text(CANARY)
    return home


@pytest.fixture
def measured(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the only row of a study that a run made."""
    use_stub(monkeypatch)
    assert cli(*RUN)[0] == 0
    (row,) = Study.open("s").results()
    return Study.open("s").folder(row.cell_id, row.env_id)


def untouched(home: Path) -> bool:
    return {path.name: path.read_text() for path in home.iterdir()} == {
        name: CANARY for name in ("notes.txt", "result.json", "cell.yaml", "log.txt", "holiday.png", "thesis.zip")
    }


def in_place_of(path: Path, target: Path) -> None:
    if path.exists():
        path.rename(path.with_name("was"))
    path.symlink_to(target)


@pytest.mark.parametrize("level", ["cells", "cell", "env"])
def test_a_run_goes_through_no_folder_that_is_a_link(cli: Cli, home: Path, measured: Path, level: str) -> None:
    folder = {"env": measured, "cell": measured.parent, "cells": measured.parent.parent}[level]
    in_place_of(folder, home)
    code, _, err = cli(*RUN, "--force")
    assert (code, untouched(home)) == (2, True)
    assert f"{folder.relative_to(Path.cwd()) if folder.is_absolute() else folder} is a symbolic link" in err


@pytest.mark.parametrize("name", [".claim", "log.txt", "result.json", "cell.yaml", "0.png", "outcome.json", "more"])
def test_nor_to_a_file_that_is_one(cli: Cli, home: Path, measured: Path, name: str) -> None:
    in_place_of(measured / name, home / "notes.txt")
    code, _, err = cli(*RUN, "--force")
    assert (code, untouched(home)) == (2, True)
    assert f"{name} is a symbolic link" in err


def test_a_link_that_appears_meanwhile_is_not_followed_either(home: Path, measured: Path) -> None:
    study, (row,) = Study.open("s"), Study.open("s").results()
    (measured / ".claim").unlink()
    (measured / ".claim").hardlink_to(home / "notes.txt")
    with study.claim(row.cell_id, row.env_id, lambda seconds: False):
        assert untouched(home), "not emptied"
    in_place_of(measured, home)
    writes = [lambda: study.keep(row), lambda: study.claim(row.cell_id, row.env_id, lambda s: False).__enter__()]
    for write in writes:
        with pytest.raises(UsageError, match="symbolic link"):
            write()
    assert untouched(home)


def test_a_reader_is_told_of_links_and_gets_the_other_rows(cli: Cli, tmp_path: Path) -> None:
    mine, theirs = Study.create("mine"), Study.create("theirs")
    mine.keep(a_result(recipe_id="5ec4e7"))
    theirs.keep(a_result(seeded(5)))
    (theirs.path / "cells" / a_result().cell_id).symlink_to(mine.path.absolute() / "cells" / a_result().cell_id)
    (theirs.path / "cells" / "loop").symlink_to(theirs.path.absolute() / "cells")
    for words in (["report", "theirs", "--csv"], ["compare", "theirs", "theirs", "--json"]):
        code, out, err = cli(*words)
        assert code == 0
        assert seeded(5).id in out
        assert "5ec4e7" not in out
        assert f"left out: {theirs.path}/cells/{a_result().cell_id} is a symbolic link" in err
    assert theirs.unfinished() == ()


def shown(folder: Path, *names: str, cell_id: str | None = None) -> tuple[Study, list[Result]]:
    """A study of one row that names these pictures; in each place that they may mean lies a red one."""
    study, row = Study.create("pictures"), a_result(artifacts=Artifacts(pictures=names))
    study.keep(row)
    own = study.folder(row.cell_id, row.env_id)
    for place in (folder / "secret.png", own.parent / "secret.png"):
        Image.new("RGB", (8, 8), SECRET).save(place)
    return study, [row if cell_id is None else row.model_copy(update={"cell_id": cell_id})]


@pytest.mark.parametrize("name", ["{home}/secret.png", "../secret.png", "link.png", "..", "", "a\0b"])
def test_a_picture_elsewhere_is_left_out_and_told(cli: Cli, tmp_path: Path, name: str) -> None:
    study, rows = shown(tmp_path, name.format(home=tmp_path))
    (study.folder(rows[0].cell_id, rows[0].env_id) / "link.png").symlink_to(tmp_path / "secret.png")
    told: list[UsageError] = []
    sheet = contact_sheet(study, rows, on_unreadable=told.append)
    assert SECRET not in {color for _, color in sheet.getcolors(2**16) or ()}
    assert len(told) == 1
    code, _, err = cli("report", "pictures", "--pictures", str(tmp_path / "sheet.png"))
    assert (code, "left out: " in err) == (0, True)
    with pytest.raises(UsageError):
        contact_sheet(study, rows)


def test_a_row_that_calls_itself_another_folder_shows_nothing(cli: Cli, tmp_path: Path) -> None:
    study, rows = shown(tmp_path, "secret.png", cell_id="../../../..")
    with pytest.raises(UsageError, match="no file in its own folder"):
        contact_sheet(study, rows)


@pytest.mark.parametrize("linked", ["0", "0/0000.png"])
def test_a_frame_elsewhere_is_left_out_and_told(cli: Cli, tmp_path: Path, linked: str) -> None:
    study, rows = shown(tmp_path, "0.gif")
    own, frames = study.folder(rows[0].cell_id, rows[0].env_id), tmp_path / "frames"
    frames.mkdir()
    Image.new("RGB", (8, 8), SECRET).save(frames / "0000.png")
    Image.new("RGB", (8, 8)).save(own / "0.gif")
    (own / linked).parent.mkdir(exist_ok=True)
    (own / linked).symlink_to(frames if linked == "0" else frames / "0000.png")
    told: list[UsageError] = []
    sheet = contact_sheet(study, rows, on_unreadable=told.append)
    assert SECRET not in {color for _, color in sheet.getcolors(2**16) or ()}
    assert [f"{own / linked} is a symbolic link" in str(error) for error in told] == [True]


def test_links_in_the_place_of_a_runs_files_are_removed_and_not_followed(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "row"
    (folder / "0" / "deep").mkdir(parents=True)
    for name in ("0/deep/link", "7", "1.gif"):
        (folder / name).symlink_to(home)
    for name in ("result.json", "rounds.json", "log.txt", "log-1.txt", "old.zip"):
        (folder / name).symlink_to(home / "notes.txt")
    (folder / "cell.yaml").symlink_to(home / "cell.yaml")
    with pytest.raises(UsageError, match=r"rounds\.json: this is a symbolic link"):
        read_ended_rounds(folder, 3)
    prepare_folder_for_run(folder, a_cell())
    assert os.listdir(folder) == ["cell.yaml"]
    assert not (folder / "cell.yaml").is_symlink()
    assert untouched(home)


def test_a_picture_of_its_own_is_on_the_sheet(cli: Cli, tmp_path: Path) -> None:
    study, rows = shown(tmp_path, "0.png")
    Image.new("RGB", (8, 8), SECRET).save(study.folder(rows[0].cell_id, rows[0].env_id) / "0.png")
    assert contact_sheet(study, rows).getpixel((GAP + SIDE // 2, GAP + SIDE // 2)) == SECRET


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) print\n%%EOF\n"


@pytest.mark.parametrize("content", [POSTSCRIPT, b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", None])
def test_a_picture_that_is_none_starts_no_program_and_is_not_waited_for(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    """Pillow gives PostScript to a program of its reader's."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    study, rows = shown(tmp_path, "0.png")
    path = study.folder(rows[0].cell_id, rows[0].env_id) / "0.png"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    code, out, err = cli("report", "pictures", "--pictures", str(tmp_path / "sheet.png"))
    assert (code, "1 cells on" in out, "left out: " in err) == (0, True, True)
    assert not (tmp_path / "started").exists()
