"""The tables of a GPU study, and the study as one small file to carry away."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from diffopt.report import table, to_csv, to_markdown
from diffopt.result import Result, write_text
from diffopt.study import Study

LOG_BYTES = 20_000  # of the log of a row that is not ok: its end


def write_tables(study: Study) -> None:
    """``table.md`` and ``table.csv`` in the study's folder, from all of its rows."""
    results = study.results()
    if not results:
        return
    write_text(study.path / "table.csv", to_csv(results))
    write_text(study.path / "table.md", _head(study, results) + to_markdown(table(results)))


def _head(study: Study, results: Sequence[Result]) -> str:
    places = dict.fromkeys(_place(result) for result in results)
    lines = [f"# {study.name}\n", "Made by `scripts/gpu_matrix`; weights are random, speed and memory are not.\n"]
    return "\n".join([*lines, *(f"- {place}" for place in places), "", ""])


def _place(result: Result) -> str:
    """Device, driver and versions of a row in a line."""
    where = result.environment
    device = where.device.name or "no such device"
    driver = f", driver {where.device.gpu.driver}" if where.device.gpu else ""
    commit = f", commit {where.git.commit[:12]}{' and changes' if where.git.dirty else ''}" if where.git else ""
    return f"{device}{driver}: {', '.join(f'{k} {v}' for k, v in where.versions.items())}{commit}"


def pack(study: Study, folder: Path) -> Path:
    """``FOLDER/NAME.tar.gz``: rows, times and tables, and the ends of the logs of rows that are not ok.

    No pictures. Unpacked in the folder that holds the study, it adds to what is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{study.name}.tar.gz"
    partial = target.with_name(f".{target.name}.tmp")
    # the same rows are the same bytes: no time in the header
    with (
        open(partial, "wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for path, content in _members(study):
            member = tarfile.TarInfo(f"{study.name}/{path.relative_to(study.path).as_posix()}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    os.replace(partial, target)
    return target


def _members(study: Study) -> list[tuple[Path, bytes]]:
    names = ("times.json", "table.md", "table.csv")
    found = [(path, path.read_bytes()) for name in names if (path := study.path / name).exists()]
    for result in study.results():
        row = study.folder(result.cell_id, result.env_id)
        found.append((row / "result.json", (row / "result.json").read_bytes()))
        log = row / "log.txt"
        if result.status != "ok" and log.exists():
            found.append((log, log.read_bytes()[-LOG_BYTES:]))
    return found
