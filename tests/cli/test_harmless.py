"""What is shown of anybody's files does nothing: no terminal obeys it, no spreadsheet computes it."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.rows import a_cell, a_result, seeded

from diffopt.cli import printing
from diffopt.cli.progress import progress
from diffopt.cli.streams import standard_streams
from diffopt.config.resolve import cell_from_config
from diffopt.results.study import Study
from diffopt.results.table import Table
from diffopt.run.events import CellFinished, CellStarted, NotBegun, SweepFinished, SweepStarted
from diffopt.schema.words import OBEYED, harmless, harmless_line

Cli = Callable[..., tuple[int, str, str]]

# the title of the window, the screen cleared, what stands before overwritten, DEL, C1's own way to begin a sequence,
# a line of its own, and text that runs the other way
EVIL = "a\x1b]0;owned\x07\x1b[2Jb\rc\x08\x7f\x9b31m\x85\u2028\u202egnp.\u2066"
SAFE = r"a\u001b]0;owned\u0007\u001b[2Jb\rc\u0008\u007f\u009b31m\u0085\u2028\u202egnp.\u2066"
LINE = "x\n[1/1] forged ok"


def obeyed(*texts: str) -> set[str]:
    return {sign for text in texts for sign in text if OBEYED.match(sign)}


def test_one_function_escapes() -> None:
    assert harmless(EVIL) == harmless_line(EVIL) == SAFE
    assert (harmless("a\tb\nc"), harmless_line("a\tb\nc")) == ("a\tb\nc", r"a\tb\nc")
    plain = "größer 日本 👩‍🚀 \\u001b"
    assert harmless_line(plain) == plain
    assert json.loads(harmless(json.dumps({EVIL: EVIL}, ensure_ascii=False))) == {EVIL: EVIL}


@pytest.fixture
def study(cli: Cli) -> Study:
    """Two rows of a stranger's, with something in each text that a verb shows."""
    study = Study.create("s")
    for seed, status in ((1, "ok"), (2, "error")):
        row = a_result(seeded(seed), status=status, reason=f"{EVIL}{LINE}", choices={"compile": f"{EVIL}{seed}{LINE}"})
        row.cell["workload"]["negative_prompt"] = f"{EVIL}{LINE}{seed}"
        device = row.environment.device.model_copy(update={"name": f"{EVIL}{LINE}"})
        versions = {**row.environment.versions, "torch": f"{EVIL}{LINE}"}
        where = row.environment.model_copy(update={"versions": versions, "device": device})
        study.keep(row.model_copy(update={"environment": where}))
    folder = study.path / "cells" / f"{EVIL}{LINE}".replace("/", "") / "e"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    (study.path / "cells" / f"begun{EVIL}" / "e").mkdir(parents=True)
    (study.path / "cells" / f"begun{EVIL}" / "e" / "cell.yaml").touch()
    return study


VERBS = {
    "report": ["report", "s"],
    "report --csv": ["report", "s", "--csv"],
    "report --pictures": ["report", "s", "--pictures", f"{EVIL}.png"],
    "compare": ["compare", "s", "s", "--slower", "5"],
    "compare --json": ["compare", "s", "s", "--json"],
    "no such side": ["compare", "s", "compile=x", "compile=y"],
    "no such study": ["report", f"{EVIL}{LINE}"],
    "no such option": ["plan", f"compile={EVIL}"],
    "no such verb": [EVIL],
    "a prompt": ["plan", "-m", f'workload.prompts=["{EVIL}"],["b"]', "hardware=cpu"],
}


@pytest.mark.parametrize("name", VERBS)
def test_no_verb_prints_what_a_terminal_obeys(cli: Cli, study: Study, name: str) -> None:
    code, out, err = cli(*VERBS[name])
    assert code in (0, 1, 2)
    assert obeyed(out, err) == set()
    if name != "report --csv":  # where a cell in quotes may have several lines
        assert not [line for line in (out + err).splitlines() if line.startswith("[1/1]")]
    if name == "compare --json":
        assert out, err
        assert json.loads(out)["cells"][1]["a"]["reason"] == f"{EVIL}{LINE}"
    elif name != "report --pictures":
        assert r"\u001b" in out + err


def test_options_of_anybodys_are_listed_harmless(cli: Cli, tmp_path: Path) -> None:
    option = tmp_path / "conf" / "compile" / "mine.yaml"
    option.parent.mkdir(parents=True)
    option.write_text(f"# says \x1b[2J \u202e\n# needs {EVIL[-5:]}\nkind: none\n", encoding="utf-8")
    (option.parent / f"{EVIL}.yaml").write_text("kind: none\n")
    for words in (["ls", "compile"], ["ls"], ["plan", "compile=mine"]):
        assert obeyed(*cli(*words)[1:]) == set()


def test_what_libraries_print_goes_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    with standard_streams():
        logging.StreamHandler().emit(logging.makeLogRecord({"msg": EVIL}))
        print(EVIL)
        sys.stdout.writelines([EVIL, "\n"])
        sys.stderr.write(EVIL)
    out, err = capsys.readouterr()
    assert (obeyed(out, err), out) == (set(), f"{SAFE}\n{SAFE}\n")
    assert err == f"{SAFE}\n{SAFE}"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_progress(stream: Callable[[], io.StringIO]) -> None:
    shown, row = stream(), a_result(status="error", reason=f"{EVIL}\n{LINE}")
    with progress(shown) as listener:
        listener(SweepStarted(2, notes=(f"{EVIL}{LINE}",)))
        listener(NotBegun(f"{EVIL}{LINE}", f"{EVIL}{LINE}"))
        listener(CellStarted(row.cell_id, f"{EVIL}{LINE}"))
        listener(CellFinished(row, f"{EVIL}{LINE}"))
        listener(SweepFinished((row,), asked=2))
    text = shown.getvalue()
    assert r"\u001b]0;owned" in text
    for theirs in ("\x1b]0", "\x1b[2J", "\x07", "\x08", "\x9b", "\u202e", "\n[1/1] forged"):
        assert theirs not in text


def test_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for width in ("200", "40"):
        monkeypatch.setenv("COLUMNS", width)
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        with standard_streams():
            printing.print_table(Table(("cell", EVIL), (("1", f"{EVIL}{LINE}"),), foot=(f"{EVIL}{LINE}",)))
        out = capsys.readouterr().out
        assert "]0;owned" in out
        for theirs in ("\x1b]0", "\x1b[2J", "\x07", "\x08", "\x9b", "\u202e", "\n[1/1] forged"):
            assert theirs not in out
    assert "\x1b[1m" in out or "\x1b[0m" in out or "\x1b" not in out


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+1", "'+1+1"),
        ("-1+1", "'-1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", r"'\r=1"),
        ("a\r=1", r"a\r=1"),
        ("-1", "-1"),
        ("-1.5e-05", "-1.5e-05"),
        ("+3", "+3"),
        ("-", "'-"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_no_spreadsheet_computes_a_cell(cell: str, shown: str) -> None:
    assert list(csv.reader(io.StringIO(Table((cell,), ((cell,),)).csv(), newline=""))) == [[shown], [shown]]


def test_a_cell_in_markdown_is_text() -> None:
    table = Table(("a",), (("<img src=x onerror=y> ![p](http://h/p.png) </td> 1 < 2 <= 3 a|b",),))
    for face in (table.markdown(), table.compact(), table.centred()):
        assert r"\<img src=x onerror=y> ![p]\(http://h/p.png) \</td> 1 < 2 <= 3 a\|b" in face


def test_show_writes_yaml_that_reads_back(cli: Cli, tmp_path: Path) -> None:
    data = a_cell().model_dump(mode="json")
    data["workload"]["prompts"] = [f"{EVIL}{LINE}", "größer 日本"]
    data["workload"]["batch_size"] = 2
    cell = cell_from_config(data)
    text = printing_of(cell)
    assert obeyed(text) == set()
    assert "größer 日本" in text
    assert yaml.safe_load(text)["workload"]["prompts"] == data["workload"]["prompts"]
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    code, out, _ = cli("show", "--recipe", str(file))
    assert (code, obeyed(out)) == (0, set())
    assert f"cell {cell.id}" in out


def printing_of(cell: object) -> str:
    from diffopt.recipe.lock import recipe_to_yaml

    return recipe_to_yaml(cell)  # type: ignore[arg-type]
