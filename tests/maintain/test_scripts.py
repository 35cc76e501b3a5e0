"""Each script is started as its user starts it, at its smallest, so that none breaks unseen; CI starts the demo."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import REPO

SCRIPTS = sorted(path for path in (REPO / "scripts").iterdir() if path.is_file())
SLOW = pytest.mark.slow


def start(module: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What the script starts, once its environment is there."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.name for script in SCRIPTS])
def test_a_script_is_a_program_and_what_it_starts_exists(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    modules = re.findall(r"-m ((?:diffopt|scripts)[\w.]*)", script.read_text(encoding="utf-8"))
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
    named = re.findall(
        r"(?:-m (?:diffopt|scripts)[\w.]*|\.venv/bin/\w+|scripts/venv|\$PYTHON\")", script.read_text(encoding="utf-8")
    )
    assert named, "it starts something"


def test_every_module_that_is_a_program_has_its_script_or_is_a_worker() -> None:
    """A ``main`` that no script starts would be one that no test here starts either."""
    texts = "".join(script.read_text(encoding="utf-8") for script in SCRIPTS)
    started = set(re.findall(r"-m ((?:diffopt|scripts)[\w.]*)", texts))
    programs = {
        ".".join(path.relative_to(REPO).with_suffix("").parts)
        for folder in (REPO / "diffopt", REPO / "scripts" / "maintain")
        for path in folder.rglob("*.py")
        if '\nif __name__ == "__main__":\n' in path.read_text(encoding="utf-8")
    }
    workers = {
        "diffopt.doctor.worker",
        "diffopt.pipeline.check",
        "diffopt.pipeline.dry_call",
        "diffopt.pipeline.worker",
    }
    assert programs - started == {"diffopt.cli.main", *workers}


@SLOW
def test_count_models(tmp_path: Path) -> None:
    assert "parameters: {" in start("scripts.maintain.count_models", "sd15", cwd=tmp_path).stdout


def test_make_inputs(tmp_path: Path) -> None:
    start("scripts.maintain.draw_inputs", "drawn", cwd=tmp_path)
    shipped = {path.name for path in (REPO / "diffopt/models/inputs").glob("*.png")}
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == shipped


@SLOW
def test_coverage(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("docs/coverage.yaml", "tests", "docs/results"):
        (tmp_path / name).symlink_to(REPO / name)
    start("scripts.maintain.coverage", ".", cwd=tmp_path)
    assert (tmp_path / "docs/coverage.md").read_bytes() == (REPO / "docs/coverage.md").read_bytes()


@SLOW
@pytest.mark.parametrize("what", ["guidance", "accuracy", "optimizations", "speed"])
def test_evaluate_tiny(tmp_path: Path, what: str) -> None:
    start(
        "scripts.maintain.tiny.evaluate", what, "--out", "made.json", "--prompts", "1", "--threads", "1", cwd=tmp_path
    )
    made = json.loads((tmp_path / "made.json").read_text(encoding="utf-8"))
    assert made["what"] == what
    if what == "optimizations":
        assert set(made["effects"]) == {"bf16", "int8_dynamic", "int8_weight", "fuse", "compile"}
        assert all(made["effects"].values())


@SLOW
def test_pairs(tmp_path: Path) -> None:
    """It runs the one pair that is not among the kept ones, and plans those of one option."""
    from scripts.maintain.pairs_table import read, to_json

    kept = read(REPO / "docs/results/pairs.json")
    (lost,) = [p for p in kept if (p.family, {p.first, p.second}) == ("UNet", {"fuse=qkv", "layout=channels_last"})]
    (tmp_path / "pairs.json").write_text(to_json([pair for pair in kept if pair != lost]), encoding="utf-8")
    words = ["--output", "pairs.json", "--table", "pairs.md", "--resume", "--family", "UNet", "--processes", "1"]
    start("scripts.maintain.pairs_table", *words, "--only", "fuse=qkv", cwd=tmp_path)
    assert read(tmp_path / "pairs.json") == kept
    assert "`fuse=qkv`" in (tmp_path / "pairs.md").read_text(encoding="utf-8")


@SLOW
def test_bench_starts(tmp_path: Path) -> None:
    words = ["--compile", "regional", "--output", "starts.json", "--", "workload.steps=1"]
    start("scripts.maintain.start_times", *words, cwd=tmp_path)
    assert set(json.loads((tmp_path / "starts.json").read_text())["starts"]) == {"regional", "aot"}


@SLOW
def test_bench_overhead(tmp_path: Path) -> None:
    output = tmp_path / "overhead.json"  # the script gives a whole path too
    words = ["--pairs", "1", "--repeats", "1", "--matrix", "attention=auto,math", "--output", str(output)]
    start("scripts.maintain.overhead", *words, cwd=tmp_path)
    assert json.loads(output.read_text())["sweep"]["cells"] == 2
