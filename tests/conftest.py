"""Shared fixtures. Threads are one: two on a busy machine make tiny tensors many times slower."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

Run = Callable[..., subprocess.CompletedProcess[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite tests/recipe/golden and the schema of rows from today's",
    )


def pytest_configure() -> None:
    """Warnings are errors; one that torch gives once a process would be the error of whichever test comes first."""
    gc.set_threshold(100_000, 50, 50)  # until all is imported
    import torch

    torch.set_warn_always(True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first: of two processes, one would wait at the end for a long file of the other."""
    seconds = Counter[Path]()
    for item in items:
        seconds[item.path] += 20 if item.get_closest_marker("slow") else 1
    items.sort(key=lambda item: -seconds[item.path])


def pytest_collection_finish() -> None:
    """What the libraries made stays; it need not be searched for garbage again and again."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture
def diffopt(tmp_path: Path) -> Run:
    """Run the real command in a process of its own, in an empty working directory."""

    def call(*words: str, cwd: Path = tmp_path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "diffopt", *words],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return call


@pytest.fixture(scope="session")
def commands() -> Iterator[Any]:
    """Run the command in a process forked from one that has imported diffopt: see support/forked.py."""
    from support.forked import Commands

    started = Commands()
    yield started
    started.close()


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., object]:
    """Run the command in this process (fast): returns (exit code, stdout, stderr)."""
    from diffopt.cli.main import main

    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(list(words))
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0) if not isinstance(stop.code, str) else 2
        out, err = capsys.readouterr()
        return code, out, err

    return call
