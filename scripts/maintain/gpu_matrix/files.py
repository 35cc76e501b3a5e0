"""The tables of a GPU study, what made them, and the study as one small file to carry away."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from diffopt.errors import UsageError
from diffopt.machine.files import appearing, write_json, write_text
from diffopt.results.result import Result
from diffopt.results.study import Study
from diffopt.results.table import table, values
from diffopt.schema.record import Frozen

LOG_BYTES = 20_000  # of the log of a row that is not ok: its end
OWN = ("times.json", "calls.json", "table.md", "table.csv")  # beside the rows

OnUnreadable = Callable[[UsageError], None] | None  # as Study.results takes it


class Call(Frozen):
    """A command that made rows, and the environment that they are from."""

    env_id: str
    command: str


def calls(study: Study) -> tuple[Call, ...]:
    """The commands that made a study's rows, oldest first. Raises UsageError for a ``calls.json`` that is none."""
    path = study.path / "calls.json"
    if not path.exists():
        return ()
    try:
        return TypeAdapter(tuple[Call, ...]).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UsageError(f"{path} is not a list of calls: {error}. Without it the tables name no command.") from error


def note_call(study: Study, call: Call) -> None:
    """Keep a command that made rows; the same one is kept once."""
    known = calls(study)
    if call not in known:
        write_json(study.path / "calls.json", [each.model_dump() for each in (*known, call)])


def write_tables(study: Study, on_unreadable: OnUnreadable = None) -> None:
    """``table.md`` and ``table.csv`` in the study's folder, from all of its rows."""
    results = study.results(on_unreadable)
    if not results:
        return
    write_text(study.path / "table.csv", values(results).csv())
    write_text(study.path / "table.md", _head(study, results) + table(results).markdown())


def _head(study: Study, results: Sequence[Result]) -> str:
    commands: dict[str, list[str]] = {}
    for call in calls(study):
        commands.setdefault(call.env_id, []).append(f"`{call.command}`")
    lines = [f"# {study.name}\n", "Made by `scripts/gpu_matrix`; weights are random, speed and memory are not.\n"]
    for place, env_id in dict.fromkeys((_place(result), result.env_id) for result in results):
        lines.append(f"- {place}" + (f"; made by {', '.join(commands[env_id])}" if env_id in commands else ""))
    return "\n".join([*lines, "", ""])


def _place(result: Result) -> str:
    """Device, driver and versions of a row in a line."""
    where = result.environment
    device = where.device.name or "no such device"
    driver = f", driver {where.device.gpu.driver}" if where.device.gpu else ""
    commit = f", commit {where.git.commit[:12]}{' and changes' if where.git.dirty else ''}" if where.git else ""
    return f"{device}{driver}: {', '.join(f'{k} {v}' for k, v in where.versions.items())}{commit}"


def pack(study: Study, folder: Path, on_unreadable: OnUnreadable = None) -> Path:
    """``FOLDER/NAME.tar.gz``: rows, times, calls and tables, and the ends of the logs of rows that are not ok.

    No pictures. Unpacked in the folder that holds the study, it adds to what is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{study.name}.tar.gz"
    # the same rows are the same bytes: no time in the header
    with (
        appearing(target) as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for path, content in _members(study, on_unreadable):
            member = tarfile.TarInfo(f"{study.name}/{path.relative_to(study.path).as_posix()}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return target


def _members(study: Study, on_unreadable: OnUnreadable) -> list[tuple[Path, bytes]]:
    found = [(path, path.read_bytes()) for name in OWN if (path := study.path / name).exists()]
    for result in study.results(on_unreadable):
        row = study.folder(result.cell_id, result.env_id)
        found.append((row / "result.json", (row / "result.json").read_bytes()))
        log = row / "log.txt"
        if result.status != "ok" and log.exists():
            found.append((log, log.read_bytes()[-LOG_BYTES:]))
    return found
