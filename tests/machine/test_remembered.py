"""Answers that are remembered: what cannot be one is as if there were none, and nothing is waited for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from diffopt.machine import remembered
from diffopt.machine.remembered import recall_answers, remember_answers, remembered_file


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = remembered_file("folder/answers.json")
    assert found is not None
    return found


def test_what_is_remembered_is_recalled(file: Path) -> None:
    assert recall_answers(file) == {}
    remember_answers(file, {"key": [1, "ä"]})
    assert recall_answers(file) == {"key": [1, "ä"]}


def test_more_than_is_ever_remembered_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember_answers(file, {"key": "x" * 100})
    monkeypatch.setattr(remembered, "LONGEST", 100)
    assert recall_answers(file) == {}
    monkeypatch.setattr(remembered, "LONGEST", 200)
    assert recall_answers(file) == json.loads(file.read_text())


def test_a_pipe_or_a_folder_in_its_place_costs_time_alone(file: Path) -> None:
    file.parent.mkdir(parents=True, mode=0o700)
    os.mkfifo(file)
    assert recall_answers(file) == {}
    remember_answers(file, {"key": 1})
    assert recall_answers(file) == {"key": 1}
    file.unlink()
    file.mkdir()
    remember_answers(file, {"key": 2})
    assert recall_answers(file) == {}
    assert os.listdir(file.parent) == [file.name]
