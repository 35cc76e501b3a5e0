"""The metric that CONTRIBUTING adds, in a copy of the repository: two files, and it is measured and shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.documents import INTO, copy_repository, insert_into, python_in
from support.places import REPO

PAGE = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
SHOWN = [found for found in INTO.findall(PAGE) if "slowest_s" in found[2]]


def test_it_is_two_files() -> None:
    assert [path for path, *_ in SHOWN] == ["diffopt/pipeline/metrics.py", "diffopt/results/result.py"]


@pytest.mark.slow
def test_it_is_measured_and_has_its_column(tmp_path: Path) -> None:
    copy = copy_repository(tmp_path)
    for path, name, lines in SHOWN:
        insert_into(copy, path, name, lines)
    words = ("run", "hardware=cpu", "measure=quick", "measure.max_variation=10", "workload.steps=1", "study=x")
    done = python_in(copy, "-m", "diffopt", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = copy.glob("studies/x/cells/*/*/result.json")
    metrics = json.loads(file.read_text())["metrics"]
    assert metrics["slowest_s"] == max(metrics["latency_s"]["samples"])
    table = python_in(copy, "-m", "diffopt", "report", "x").stdout
    assert "slowest s" in table
    assert f"{metrics['slowest_s']:.3f}" in table
