"""``launch.kind`` finds the launcher; another one is another module and an option."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.documents import new_files
from support.processes import launch, use_stub
from support.rows import stubbed

from diffopt.config.resolve import compose_requests
from diffopt.errors import UsageError
from diffopt.results.result import Result
from diffopt.run import launchers
from diffopt.run.events import CellStarted, Event
from diffopt.run.launchers import launcher, local
from diffopt.run.sweep import run_all

Cli = Callable[..., tuple[int, str, str]]
SHOWN = {path: text for path, text in new_files().items() if "/launch" in path}  # by CONTRIBUTING


def test_the_shipped_one_is_a_module() -> None:
    assert launcher("local") is local


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_an_unknown_one_is_a_usage_error_before_there_is_a_study(cli: Cli, verb: str, tmp_path: Path) -> None:
    code, out, err = cli(verb, "hardware=cpu", "measure=quick", "launch.kind=locl", "study=s")
    assert (code, out) == (2, "")
    assert "launch.kind=locl: there is no such launcher. Did you mean local?" in err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="launch.kind=locl"):
        run_all([stubbed("ok")], tmp_path / "s", launch().model_copy(update={"kind": "locl"}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["a.b", "../local", ""])
def test_what_is_no_name_of_a_launcher_is_refused_where_it_is_read(kind: str) -> None:
    with pytest.raises(UsageError, match=r"launch\.kind"):
        compose_requests(["hardware=cpu", f"launch.kind='{kind}'"])


def test_another_launcher_is_a_module_and_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two files that CONTRIBUTING shows, beside the shipped ones."""
    assert sorted(SHOWN) == ["conf/launch/backwards.yaml", "diffopt/run/launchers/backwards.py"]
    for path, text in SHOWN.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    monkeypatch.setattr(launchers, "__path__", [*launchers.__path__, str(tmp_path / "diffopt/run/launchers")])
    (request,) = compose_requests(["hardware=cpu", "launch=backwards"], trusted=[tmp_path / "conf"])
    use_stub(monkeypatch)
    started: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, CellStarted):
            started.append(event.cell_id)

    cells = [stubbed(mode) for mode in ("ok", "exit3")]
    try:
        rows: list[Result] = run_all(cells, tmp_path / "s", request.launch, listen)
    finally:
        sys.modules.pop("diffopt.run.launchers.backwards", None)
    assert [row.status for row in rows] == ["ok", "crashed"]
    assert started == [cell.id for cell in reversed(cells)]
