"""One odd row never breaks a study: it is told by name and left out, and what is not ours is never replaced."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes import use_stub
from support.rows import a_cell, a_result, stubbed

from diffopt.config.resolve import cell_from_config, compose_requests
from diffopt.errors import UsageError
from diffopt.machine.environment import detect_environment
from diffopt.recipe.cell import Cell
from diffopt.results.result import Latency, Metrics
from diffopt.results.rounds import read_ended_rounds
from diffopt.results.row_files import RowStays
from diffopt.results.study import Study

Cli = Callable[..., tuple[int, str, str]]
Row = dict[str, Any]
WHERE = detect_environment("cpu")
METRICS = Metrics(latency_s=Latency(samples=(1.0,) * 3, median=1.0, q1=1.0, q3=1.0))


def changed(data: Row, place: str, value: Any) -> str:
    *parents, key = place.split(".")
    node = data
    for name in parents:
        node = node[name]
    node[key] = value
    return json.dumps(data)


def text(make: Callable[[Row], str]) -> Callable[[Path, Row], None]:
    return lambda path, data: path.write_bytes(make(data).encode("utf-8", "surrogatepass")) and None


def field(place: str, value: Any) -> Callable[[Path, Row], None]:
    return text(lambda data: changed(data, place, value))


def in_its_place(make: Callable[[Path], object]) -> Callable[[Path, Row], None]:
    def odd(path: Path, data: Row) -> None:
        path.unlink()
        make(path)

    return odd


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "mine.txt").write_text("alive")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        where = os.getcwd()
        os.chdir(path.parent)  # the name of a socket is short
        try:
            server.bind(path.name)
        finally:
            os.chdir(where)


SPOILED: dict[str, Callable[[Path, Row], None]] = {
    "empty": text(lambda data: ""),
    "truncated": text(lambda data: json.dumps(data)[:200]),
    "list": text(lambda data: "[]"),
    "no version": field("schema_version", None),
    "unknown status": field("status", "fine"),
    "unknown kind": field("cell.recipe.quant", {"kind": "hopefully"}),
    "wrong type": field("metrics.latency_s.median", "fast"),
    "cell of wrong type": field("cell.workload.steps", "many"),
    "NaN": field("metrics.latency_s.median", float("nan")),
    "infinity": field("seconds", float("inf")),
    "overflow": text(lambda data: json.dumps(data).replace('"seconds": null', '"seconds": 1e999')),
    "huge": field("metrics.peak_memory_bytes.steady", 10**400),
    "many digits": text(lambda data: json.dumps(data).replace('"seconds": null', f'"seconds": {"9" * 5000}')),
    "deep": text(lambda data: changed(data, "cell.recipe", 0)[:-1] + ', "x": ' + "[" * 300_000 + "]" * 300_000 + "}"),
    "no text": lambda path, data: path.write_bytes(b"\xff\xfe\0{}") and None,
    "surrogate": field("status", "\ud800"),
    "escape": field("status", "\x1b[31m" + "x" * 10_000),
}
STAYING: dict[str, Callable[[Path, Row], None]] = {
    "newer": field("schema_version", 2),
    "much newer": field("schema_version", "3.0"),
    "field of a newer one": field("metrics.energy_j", 1.0),
    "wide": text(lambda data: changed(data, "choices", {})[:-1] + "".join(f', "k{i}": 0' for i in range(50_000)) + "}"),
    "another cell": field("cell_id", "0" * 12),
    "another environment": field("env_id", "../" * 30_000),
    "folder": in_its_place(a_folder),
    "pipe": in_its_place(os.mkfifo),
    "socket": in_its_place(a_socket),
    "too large": lambda path, data: os.truncate(path, 65 * 2**20),
}
ODD = SPOILED | STAYING
READ = [
    ["report", "s"],
    ["report", "s", "--csv"],
    ["report", "s", "--pictures", "sheet.png"],
    ["report", "s", "--like", "accelerate_inference"],
    ["report", "s", "--like", "pytorch2"],
    ["compare", "s", "s"],
    ["compare", "s", "s", "--json"],
]


def cell(seed: int) -> Cell:
    data = stubbed("ok").model_dump(mode="json")
    data["workload"]["seed"] = seed
    return cell_from_config(data)


def run_words(count: int) -> list[str]:
    seeds = ",".join(map(str, range(count)))
    return [
        "run",
        "-m",
        "hardware=cpu",
        "measure=quick",
        "workload.negative_prompt=ok",
        f"workload.seed={seeds}",
        "study=s",
    ]


def whole(seed: int) -> tuple[Study, Path]:
    """A row of this machine, as a run would keep it, and its file."""
    study = Study.create("s")
    made = a_result(cell(seed), env_id=WHERE.id, environment=WHERE, metrics=METRICS)
    study.keep(made)
    return study, study.folder(made.cell_id, made.env_id) / "result.json"


def spoil(names: list[str]) -> dict[str, Path]:
    """A study whose first row is whole; each other one is odd in its own way."""
    whole(0)
    files = {}
    for seed, name in enumerate(names, 1):
        _, files[name] = whole(seed)
        ODD[name](files[name], json.loads(files[name].read_text()))
    return files


def state(path: Path) -> Any:
    """What a file is, or all that a folder has."""
    if path.is_dir():
        return {each.name: each.read_bytes() for each in path.iterdir()}
    found = path.lstat()
    return (found.st_mode, found.st_ino, found.st_size, path.read_bytes() if path.is_file() else None)


def keep_published() -> None:
    """Rows that the published pages have places for."""
    for request in compose_requests(["sweep=accelerate_inference", "hardware=a100"], multirun=True):
        Study.create("s").keep(a_result(request.cell, choices=dict(request.cell.choices), metrics=METRICS))


def shown(row: Cell, words: list[str], out: str) -> bool:
    if "--like" in words:
        return "sdxl" in out or "SDXL" in out
    if words == ["compare", "s", "s"]:
        return "1.00x" in out
    return "cells on sheet.png" in out if "--pictures" in words else row.id in out


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    use_stub(monkeypatch)


def test_readers_name_each_odd_row_and_show_the_others(cli: Cli) -> None:
    keep_published()
    files = spoil(list(ODD))
    before = {name: state(path) for name, path in files.items()}
    for words in READ:
        code, out, err = cli(*words)
        assert code == 0, err
        assert "Traceback" not in err
        assert {name for name, path in files.items() if str(path) not in err} == set(), words
        assert shown(cell(0), words, out)
        assert not {c for c in err if c < " " and c != "\n"}
        assert max(map(len, err.splitlines())) < 1500, "one paragraph each"
    assert {name: state(path) for name, path in files.items()} == before


def test_a_row_of_huge_numbers_is_shown_as_it_is(cli: Cli) -> None:
    _, path = whole(0)
    data = json.loads(path.read_text())
    data["metrics"]["latency_s"] = {"samples": [1e308, -1e308], "median": 1e308, "q1": -1e308, "q3": 1e308}
    data["metrics"]["peak_memory_bytes"] = {"first_call": 10**19, "steady": -(10**18)}
    data["environment"]["device"]["memory_bytes"] = 10**19
    path.write_text(json.dumps(data))
    whole(1)
    keep_published()
    for words in READ:
        code, out, err = cli(*words)
        assert (code, "Traceback" in err) == (0, False), err
        assert shown(cell(1), words, out)


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_run_replaces_what_is_spoiled_and_lets_stay_what_is_not_ours(cli: Cli, force: list[str]) -> None:
    names = ["truncated", "unknown kind", *STAYING]
    files = spoil(names)
    before = {name: state(files[name]) for name in STAYING}
    code, out, err = cli(*run_words(len(names) + 1), *force)
    assert (code, "Traceback" in err) == (1, False), err
    assert {name: state(files[name]) for name in STAYING} == before
    rows = {row.cell_id: row.status for row in Study.open("s").results(lambda error: None)}
    assert rows == {cell(seed).id: "ok" for seed in range(3)}
    for name, path in files.items():
        assert str(path) in err, name
    assert err.count("(kept)") == (0 if force else 1)
    assert f"{len(STAYING)} of {len(names) + 1} rows of this sweep are not in the study studies/s." in err
    assert out.count("error") >= len(STAYING)


def test_a_newer_row_is_the_reason_of_a_single_run(cli: Cli) -> None:
    files = spoil(["newer"])
    before = state(files["newer"])
    words = [*run_words(1), "--force"]
    words = [word.replace("seed=0", "seed=1") for word in words if word != "-m"]
    code, out, err = cli(*words)
    assert (code, state(files["newer"])) == (1, before)
    assert "has schema version 2, this diffopt reads 1" in err
    assert "error" in out


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("cell.yaml", a_folder),
        ("rounds.json", a_folder),
        ("log.txt", a_folder),
        ("0.png", a_folder),
        ("outcome.json", a_folder),
        (".claim", a_folder),
        (".claim", os.mkfifo),
        (".claim", a_socket),
        ("log.txt", os.mkfifo),
        ("rounds.json", os.mkfifo),
        ("cell.yaml", os.mkfifo),
        ("", lambda path: path.write_text("alive")),
        ("..", lambda path: path.write_text("alive")),
    ],
)
def test_what_lies_in_the_place_of_a_runs_files_is_told_and_that_cell_alone_fails(
    cli: Cli, name: str, odd: Callable[[Path], object]
) -> None:
    study, kept = whole(0)
    folder = study.folder(cell(1).id, WHERE.id)
    place = {"": folder, "..": folder.parent}.get(name, folder / name)
    place.parent.mkdir(parents=True, exist_ok=True)
    odd(place)
    before, row = state(place), kept.read_bytes()
    code, _, err = cli(*run_words(3))
    assert (code, "Traceback" in err) == (1, False), err
    assert (state(place), kept.read_bytes()) == (before, row)
    assert str(place) in err
    assert f"1 of 3 rows of this sweep are not in the study studies/s. {cell(1).id}: " in err
    assert {r.cell_id for r in study.results(lambda error: None)} == {cell(0).id, cell(2).id}
    code, out, err = cli("report", "s")
    assert (code, cell(0).id in out) == (0, True)
    assert (str(place) in err) == (name == "..") or name == ""


def test_cells_that_is_a_file_is_no_study(cli: Cli) -> None:
    Path("studies/s").mkdir(parents=True)
    Path("studies/s/cells").write_text("alive")
    for words in (["report", "s"], run_words(1)):
        code, _, err = cli(*words)
        assert (code, "is no study" in err or "is not a study" in err) == (2, True)


ROUND: Row = {
    "outcome": {
        "status": "ok",
        "phase": "measure",
        "valid": True,
        "samples": [{"latency": 1.0, "parts": []}],
    },
    "seconds": 1.0,
}


@pytest.mark.parametrize(
    ("rounds", "count"),
    [
        ([ROUND], 1),
        ([], 0),
        ([ROUND] * 3, None),
        ([ROUND] * 9, None),
        ([{**ROUND, "outcome": {**ROUND["outcome"], "samples": []}}], None),
        ([{**ROUND, "outcome": {**ROUND["outcome"], "status": "error"}}], None),
        ([{**ROUND, "seconds": float("nan")}], None),
    ],
)
def test_rounds_are_those_that_can_be_gone_on_with(tmp_path: Path, rounds: list[Row], count: int | None) -> None:
    (tmp_path / "rounds.json").write_text(json.dumps({"rounds": rounds}))
    if count is not None:
        assert len(read_ended_rounds(tmp_path, 3)) == count
        return
    with pytest.raises(UsageError, match="cannot be read as the rounds"):
        read_ended_rounds(tmp_path, 3)


def test_rounds_that_are_too_large_say_so(tmp_path: Path) -> None:
    (tmp_path / "rounds.json").touch()
    os.truncate(tmp_path / "rounds.json", 257 * 2**20)
    with pytest.raises(RowStays, match=r"is too large: it has 257\.0 MiB, and at most 256 MiB are read"):
        read_ended_rounds(tmp_path, 3)
    assert a_cell().measure.rounds == 1
