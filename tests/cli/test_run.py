"""The verb `run` on stand-in workers: exit codes, what is measured again, what is said, what is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import use_stub

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    use_stub(monkeypatch)
    return lambda *words: cli("run", "hardware=cpu", "measure=quick", *words)


def test_a_single_run_that_is_not_valid_exits_1_and_is_measured_again(run: Cli) -> None:
    words = ("workload.negative_prompt=noisy", "study=s")
    code, out, err = run(*words)
    assert code == 1
    assert "ok, not valid" in out
    assert "latency varies" in out
    assert "ok, not valid" in err
    code, out, err = run(*words)
    assert (code, "(kept)" in err, "not valid" in out) == (0, False, False)
    code, _, err = run(*words)
    assert (code, "(kept)" in err) == (0, True)
    code, _, err = run("--force", *words)
    assert (code, "(kept)" in err) == (0, False)


def test_in_a_sweep_a_row_that_is_not_valid_is_no_failure(run: Cli) -> None:
    code, _, err = run("-m", "workload.negative_prompt=noisy,ok", "study=s")
    assert code == 0
    assert "1 of them not valid" in err


def test_a_refused_single_run_leaves_no_folder(run: Cli, tmp_path: Path) -> None:
    for words in ((), ("study=s",), ("study=./there",)):
        code, out, err = run("quant=fp8_dynamic", *words)
        assert code == 1
        assert "refused" in out
        assert "quant=fp8_dynamic" in out
        assert "refused at plan" in err
        assert not list(tmp_path.iterdir())
    assert run("-m", "quant=fp8_dynamic,none", "workload.negative_prompt=ok", "study=s")[0] == 0
    assert (tmp_path / "studies" / "s").is_dir()


def test_notes_of_the_plan_are_said(run: Cli, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("a cat\na dog\n")
    words = ("workload.negative_prompt=ok", "workload.prompts_file=two.txt", "study=s")
    code, _, err = run(*words)
    note = "note: workload: 2 prompts, but a batch of 1 draws only the first"
    assert (code, err.splitlines()[0]) == (0, note)
    assert "notes" in cli("report", "s", "--csv")[1].splitlines()[0].split(",")
    assert err.count(note) == 1
    assert note in cli("plan", "hardware=cpu", "measure=quick", *words)[1]
