"""Tables on a terminal: no name and no id is broken, however narrow it is."""

from __future__ import annotations

import re

import pytest

from diffopt.cli import printing
from diffopt.results.table import Table

OPTION = "diffusers_page_accelerate_inference"
SAYS = "a long sentence about what an option does, when it helps and when it hurts, in plain words for a reader"
FACES = re.compile(r"\x1b\[\d+m")
SHOWN = Table(("cell", "recipe", "latency s", "reason"), (("0123456789ab", OPTION, "1.234", SAYS),), frozenset({2}))


@pytest.mark.parametrize("width", [100, 60])
def test_ids_and_options_are_whole(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    printing.print_table(SHOWN)
    lines = FACES.sub("", capsys.readouterr().out).splitlines()
    assert any("0123456789ab" in line for line in lines)
    assert any(OPTION in line for line in lines)
    assert " ".join(" ".join(lines).split()).count("when it hurts") == 1
    assert (max(map(len, lines)) <= width) == (width == 100)
    assert (lines[0] == "0123456789ab") == (width == 60), "a block for a row where there is no room for columns"


def test_figures_stand_to_the_right(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    printing.print_table(Table(("a", "seconds"), (("x", "1.5"),), frozenset({1})))
    assert FACES.sub("", capsys.readouterr().out).splitlines()[1].rstrip().endswith("    1.5")
