"""A study: a directory of results. What a sweep writes, what a report reads.

    NAME/cells/<cell_id>/<env_id>/{cell.yaml, result.json, log.txt, 0.png, …}

Each row is its own folder and each file appears whole, so processes on many machines may write different cells of one
study at once. There is no index and nothing shared: what the directory holds is the state.
"""

from __future__ import annotations

import fcntl
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffopt.errors import UsageError
from diffopt.machine.files import write_json
from diffopt.machine.paths import STUDIES, path_of_study
from diffopt.results.result import Result, read_result

CLAIM_POLL_S = 0.5


@dataclass(frozen=True)
class Study:
    """A directory of results. Make one with :meth:`open`, :meth:`create` or :meth:`fresh`."""

    path: Path

    @classmethod
    def open(cls, name_or_path: str | Path) -> Study:
        """A study to read. Raises UsageError when there is none, naming those that there are."""
        study = cls(path_of_study(name_or_path))
        if not (study.path / "cells").is_dir():
            there = sorted(path.parent.name for path in STUDIES.glob("*/cells") if path.is_dir())
            known = f" {STUDIES}/ has {', '.join(there)}." if there else f" There is none in {STUDIES}/ yet."
            raise UsageError(f"study={name_or_path}: {study.path} is not a study.{known}")
        return study

    @classmethod
    def exists(cls, name_or_path: str | Path) -> bool:
        """Whether there is a study of that name. Raises UsageError for what can be none."""
        return (path_of_study(name_or_path) / "cells").is_dir()

    @classmethod
    def create(cls, name_or_path: str | Path) -> Study:
        """A study to write: a new one, or one that continues where it stopped."""
        study = cls(path_of_study(name_or_path))
        if study.path.is_dir() and not (study.path / "cells").is_dir() and any(study.path.iterdir()):
            raise UsageError(f"study={name_or_path}: {study.path} has other files in it and is no study.")
        try:
            (study.path / "cells").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"study={name_or_path}: {study.path} cannot be made into a study: {error.strerror}."
            ) from error
        return study

    @classmethod
    def fresh(cls) -> Study:
        """A new study under a name that nobody else has: the time, and a suffix for runs of the same second."""
        path = STUDIES / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        try:
            STUDIES.mkdir(exist_ok=True)
            path.mkdir(exist_ok=False)
        except OSError as error:
            raise UsageError(
                f"{path} cannot be made here: {error.strerror}. Say where results go with study=/a/path."
            ) from error
        return cls.create(path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def asked_for(self) -> str:
        """What ``study=`` is to say for this one: its name where it lies in ``studies/`` here, else its path."""
        return self.name if self.path.parent == STUDIES else str(self.path.absolute())

    def folder(self, cell_id: str, env_id: str) -> Path:
        """Where the row of a cell in an environment lies; it need not exist."""
        return self.path / "cells" / cell_id / env_id

    def results(self, on_unreadable: Callable[[UsageError], None] | None = None) -> tuple[Result, ...]:
        """All rows, ordered by id.

        Args:
            on_unreadable: told of each file that is not a result, and of each folder that may not be entered; they are
                left out.

        Raises:
            UsageError: for such a file or folder, when there is nobody to tell.
        """

        def tell(error: UsageError) -> None:
            if on_unreadable is None:
                raise error
            on_unreadable(error)

        found = []
        for path in _files_of_rows(self.path / "cells", 2, tell):
            try:
                found.append(read_result(path))
            except UsageError as error:
                tell(error)
        return tuple(found)

    def unfinished(self) -> tuple[str, ...]:
        """Ids of cells that were begun and have no row anywhere: they run now, or were cut off with their parent."""
        begun = {path.parent.parent.name for path in self.path.glob("cells/*/*/cell.yaml")}
        return tuple(sorted(begun - {path.parent.parent.name for path in self.path.glob("cells/*/*/result.json")}))

    @contextmanager
    def claim(self, cell_id: str, env_id: str, wait: Callable[[float], bool]) -> Iterator[bool]:
        """Work on a cell alone: another process that claims it waits until this one is done.

        The claim is a lock that the system drops with the process that holds it, so a killed one leaves none behind.

        Args:
            wait: sleeps for the seconds it is given; False ends the waiting.

        Yields:
            Whether the cell is claimed; False when the waiting was ended.
        """
        folder = self.folder(cell_id, env_id)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".claim", "w", encoding="utf-8") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not wait(CLAIM_POLL_S):
                        yield False
                        return
            yield True

    def row(self, cell_id: str, env_id: str) -> Result | None:
        """The row of a cell in an environment, however it ended; None where there is none.

        Raises UsageError when there is a row that cannot be read.
        """
        path = self.folder(cell_id, env_id) / "result.json"
        return read_result(path) if path.exists() else None

    def keep(self, result: Result) -> None:
        """Write a row; it is there whole or not at all."""
        folder = self.folder(result.cell_id, result.env_id)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "result.json", result.model_dump(mode="json"))


def _files_of_rows(folder: Path, depth: int, tell: Callable[[UsageError], None]) -> Iterator[Path]:
    """The files of the rows so many folders below this one, in order; of a folder that may not be entered is told.

    Not by glob, for which such a folder is empty.
    """
    try:
        entries = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        tell(UsageError(f"{folder} cannot be read: {error.strerror}."))
        return
    for entry in entries:
        if depth:
            yield from _files_of_rows(entry, depth - 1, tell)
        elif entry.name == "result.json":
            yield entry
