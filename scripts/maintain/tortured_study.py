"""A study of many small cells, the command that measures them, and what must be true of it after each kill."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from diffopt.models.resolve import packaged_architecture
from diffopt.results.study import Study
from scripts.maintain.marked import Marked

SUPPORT = Path(__file__).parents[2] / "tests" / "support"
OF_A_ROW = {"cell.yaml", "result.json", "log.txt", "0.png", ".claim"}  # what a clean study has of each cell
WORDS = (
    *("run", "-m", "model=local", "model.path=mine", "model.weights=random", "hardware=cpu", "measure=quick"),
    *("workload.height=32", "workload.width=32", "workload.steps=1", "measure.samples=2", "measure.max_samples=2"),
    "measure.max_variation=1000",  # else what is not valid is measured again, as it should be
    *("sweep=torture", "study=s"),
)
STAND_IN = """
import sys
from diffopt.cli.main import main
from diffopt.run import dry_call, process
worker, call = sys.argv.pop(1), sys.argv.pop(1)
process._command = lambda folder, fd, *rest: [sys.executable, worker, str(folder), str(fd)]
dry_call.WORKER = (call,)
sys.exit(main())
"""
OWN_CACHES = ("DIFFOPT_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")


@dataclass
class Sweep:
    """One run of the command, and the lines that it has printed so far."""

    process: subprocess.Popen[str]
    before: int  # cells that had their row when it started
    lines: list[str] = field(default_factory=list)
    heard: bool = False  # its lines were counted

    def read(self) -> None:
        """Take its lines as they come."""
        assert self.process.stderr is not None, "it is a pipe"
        with self.process.stderr as lines:
            for line in lines:
                self.lines.append(line.rstrip("\n"))

    @property
    def finished(self) -> int:
        """Cells that have their row, with those that failed."""
        return self.before + sum(line.startswith("[") and "(kept)" not in line for line in self.lines)


@dataclass
class TorturedStudy:
    """The study in a folder of its own with temporary files and caches of its own, and the faults that were seen."""

    place: Path
    cells: int
    odd: int  # of so many cells one compiles ahead of time, one times starts and one has two rounds
    stand_in: bool  # workers import no torch
    faults: list[str] = field(default_factory=list)
    rows: dict[Path, tuple[int, int, bytes]] = field(default_factory=dict)  # those that are ok, as they were written
    measured: Counter[str] = field(default_factory=Counter)  # how often a run said that it has, by cell
    runs: int = 0

    def __post_init__(self) -> None:
        self.marked = Marked("DIFFOPT_TORTURE", self.place.name)
        self._shared = set(os.listdir("/dev/shm"))
        for name in ("tmp", "cache", "conf/sweep"):
            (self.place / name).mkdir(parents=True)
        shutil.copytree(packaged_architecture("sd15", tiny=True), self.place / "mine")
        text = yaml.safe_dump({"zip": [self._words_of_cell(number) for number in range(self.cells)]})
        (self.place / "conf/sweep/torture.yaml").write_text(text, encoding="utf-8")

    def _words_of_cell(self, number: int) -> dict[str, Any]:
        words = {"workload.seed": number, "compile": "none", "measure.starts": False, "measure.rounds": 1}
        odd: tuple[dict[str, Any], ...] = ({"compile": "aot"}, {"measure.starts": True}, {"measure.rounds": 2})
        return words | dict(enumerate(odd, self.odd - len(odd))).get(number % self.odd, {})

    def start(self) -> Sweep:
        """Run the command, or go on."""
        command = [sys.executable, "-m", "diffopt", *WORDS]
        if self.stand_in:
            stubs = [str(SUPPORT / "stub_worker.py"), str(SUPPORT / "stub_dry_call.py")]
            command = [sys.executable, "-c", STAND_IN, *stubs, *WORDS, "workload.negative_prompt=busy"]
        environment = {name: value for name, value in os.environ.items() if name not in OWN_CACHES}
        environment |= {**self.marked.variable, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment |= {"TMPDIR": str(self.place / "tmp"), "XDG_CACHE_HOME": str(self.place / "cache")}
        streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=self.place, env=environment, start_new_session=True, **streams)
        self.runs += 1
        sweep = Sweep(process, before=len(self.ok()))
        threading.Thread(target=sweep.read, daemon=True).start()
        return sweep

    def hear(self, sweep: Sweep) -> None:
        """Count what a run that has ended said of cells that it measured."""
        if sweep.heard:
            return
        sweep.heard = True
        if (code := sweep.process.wait()) not in (0, 1, -signal.SIGKILL):
            self.faults.append(f"exit code {code}: {sweep.lines[-1:]}")
        for line in sweep.lines:
            if found := re.match(r"\[\d+/\d+\] (.*?) ok(?!.*\(kept\))", line):
                self.measured[found[1]] += 1

    def results(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The files of all rows, and what is in them."""
        for path in self.place.glob("studies/s/cells/*/*/result.json"):
            try:
                yield path, json.loads(path.read_bytes())
            except FileNotFoundError:  # a failed one, which is measured anew now
                continue

    def ok(self) -> set[Path]:
        """The files of the rows that stay."""
        return {path for path, row in self.results() if row["status"] == "ok" and row["valid"]}

    def forget_calls(self) -> None:
        """The next run calls the model without weights once more."""
        shutil.rmtree(self.place / "cache" / "diffopt" / "dry_calls", ignore_errors=True)

    def look(self, after: str) -> None:
        """Rows that were there must be there as they were, and each can be read."""
        if not (self.place / "studies/s/cells").exists():
            return
        Study.open(self.place / "studies/s").results(lambda error: self.faults.append(f"unreadable: {error}"))
        for path, before in self.rows.items():
            if not path.exists():
                self.faults.append(f"lost after {after}: {path.parent}")
            elif _as_written(path) != before:
                self.faults.append(f"measured twice, after {after}: {path.parent}")
        self.rows |= {path: _as_written(path) for path in self.ok()}

    def look_at_end(self) -> None:
        """Each cell has one row, which is ok and was measured once, and nothing lies about."""
        self.look("the end")
        results = list(self.results())
        cells = {path.parent.parent.name for path, _ in results}
        if not len(self.rows) == len(results) == len(cells) == self.cells:
            self.faults.append(f"{len(self.rows)} rows are ok of {len(results)}, of {len(cells)} cells")
        self.faults += [f"measured {count} times: {label}" for label, count in self.measured.items() if count > 1]
        for path, row in results:
            rounds = {f"log-{number}.txt" for number in range(1, len(row["rounds"]))}
            if odd := {entry.name for entry in path.parent.iterdir()} ^ (OF_A_ROW | rounds):
                self.faults.append(f"files of cell {path.parent.parent.name}: {sorted(odd)}")
        self.faults += [f"left: {path}" for path in self._files_left()]

    def _files_left(self) -> Iterator[Path]:
        yield from (self.place / "tmp").iterdir()
        yield from (self.place / "studies").rglob("*.tmp")
        for pattern in ("*.tmp", "diffopt-*"):
            found = (self.place / "cache" / "diffopt").rglob(pattern)
            yield from (path for path in found if "inductor" not in path.parts)  # torch's own, which it keeps
        new = {*os.listdir("/dev/shm")} - self._shared
        yield from (Path("/dev/shm", name) for name in new if self.marked.unused_memory(name))


def _as_written(path: Path) -> tuple[int, int, bytes]:
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, path.read_bytes()
