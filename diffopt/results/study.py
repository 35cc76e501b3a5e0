"""A study: a directory of results. What a sweep writes, what a report reads.

    NAME/cells/<cell_id>/<env_id>/{cell.yaml, result.json, log.txt, 0.png, …, quality/}
    NAME/drawings/<id>/<env_id>/{cell.yaml, drawing.json, log.txt, quality/}

Each row is its own folder and each file appears whole, so processes on many machines may write different cells of one
study at once. There is no index and nothing shared: what the directory holds is the state.

A study may come from anybody: below its own path no symbolic link is followed, to read or to write, and what a row
names is a file in its own folder. New folders and files are for their user alone.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from diffopt.errors import UsageError
from diffopt.machine.files import (
    FOLDER_FOR_ITS_USER,
    FOR_ITS_USER,
    LINK,
    first_link,
    links_below,
    make_private_folders,
    refuse_link,
    write_json,
)
from diffopt.machine.paths import STUDIES, path_of_study
from diffopt.machine.reading import opened_file, refuse_odd_file
from diffopt.results.result import Result
from diffopt.results.row_files import STAYS, RowStays, files_of_rows, is_plain_name, read_result

CLAIM_POLL_S = 0.5
LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # which waits for no pipe's writer


@dataclass(frozen=True)
class Study:
    """A directory of results. Make one with :meth:`open`, :meth:`create` or :meth:`fresh`."""

    path: Path

    @classmethod
    def open(cls, name_or_path: str | Path) -> Study:
        """A study to read. Raises UsageError when there is none, naming those that there are."""
        study = cls(path_of_study(name_or_path))
        study._refuse_link(study._cells)
        if not study._cells.is_dir():
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
        """A study to write: a new one, or one that continues where it stopped.

        Raises UsageError for what can be none, and where a link lies in it: a run deletes and writes files there.
        """
        study = cls(path_of_study(name_or_path))
        study._refuse_link(study._cells)
        if study.path.is_dir() and not study._cells.is_dir() and any(study.path.iterdir()):
            raise UsageError(f"study={name_or_path}: {study.path} has other files in it and is no study.")
        try:
            make_private_folders(study._cells)
            folders = (folder for folder in (study._cells, study._drawings) if folder.is_dir())
            link = next((link for folder in folders for link in links_below(folder)), None)
        except OSError as error:
            raise UsageError(
                f"study={name_or_path}: {study.path} cannot be made into a study: {error.strerror}."
            ) from error
        if link is not None:
            raise UsageError(LINK.format(link))
        return study

    @classmethod
    def fresh(cls) -> Study:
        """A new study under a name that nobody else has: the time, and a suffix for runs of the same second."""
        path = STUDIES / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        try:
            make_private_folders(STUDIES)
            path.mkdir(FOLDER_FOR_ITS_USER, exist_ok=False)
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
        return self._cells / cell_id / env_id

    def place_of_file(self, result: Result, *names: str) -> Path:
        """Where a file of a row lies, such as a picture, by its name and those of its folders; it need not exist.

        Raises UsageError for a name that leads elsewhere.
        """
        if not all(map(is_plain_name, (result.cell_id, result.env_id, *names))):
            raise UsageError(
                f"The row of cell {result.cell_id} names {'/'.join(names)}, which is no file in its own folder."
            )
        path = self.folder(result.cell_id, result.env_id).joinpath(*names)
        self._refuse_link(path)
        return path

    def open_file(self, result: Result, *names: str) -> AbstractContextManager[BufferedReader]:
        """The same file, open for reading.

        Raises UsageError for what is none in the row's folder, and OSError for one that must not be read.
        """
        path = self.place_of_file(result, *names)
        return opened_file(path, str(path), follow=False)

    def open_drawing_file(self, drawing_id: str, env_id: str, *names: str) -> AbstractContextManager[BufferedReader]:
        """A file of the pictures that cells are compared with, open for reading; raises as :meth:`open_file`."""
        if not all(map(is_plain_name, (drawing_id, env_id, *names))):
            raise UsageError(f"{drawing_id} names {'/'.join(names)}, which is no file in its own folder.")
        path = self._drawings.joinpath(drawing_id, env_id, *names)
        self._refuse_link(path)
        return opened_file(path, str(path), follow=False)

    def results(self, on_unreadable: Callable[[UsageError], None] | None = None) -> tuple[Result, ...]:
        """All rows, ordered by id.

        Args:
            on_unreadable: told of each file that is not a result, or is another cell's, of each link on the way to one,
                and of each folder that may not be entered; they are left out.

        Raises:
            UsageError: for such a file or folder, when there is nobody to tell.
        """

        def tell(error: UsageError) -> None:
            if on_unreadable is None:
                raise error
            on_unreadable(error)

        found = []
        for path in files_of_rows(self._cells, tell):
            try:
                found.append(self._row_at(path))
            except UsageError as error:
                tell(error)
            except FileNotFoundError:  # it is measured anew, just now
                continue
        return tuple(found)

    def unfinished(self) -> tuple[str, ...]:
        """Ids of cells that were begun and have no row anywhere: they run now, or were cut off with their parent."""
        begun, ended = (self._cells_with(name) for name in ("cell.yaml", "result.json"))
        return tuple(sorted(begun - ended))

    def _cells_with(self, name: str) -> set[str]:
        """Ids of cells that have a file of that name; none is read."""
        found = self.path.glob(f"cells/*/*/{name}")
        return {path.parent.parent.name for path in found if first_link(self.path, path) is None}

    @contextmanager
    def claim_drawing(self, drawing_id: str, env_id: str, wait: Callable[[float], bool]) -> Iterator[Path | None]:
        """Likewise for pictures that cells are compared with: their folder, or None when the waiting was ended."""
        folder = self._drawings / drawing_id / env_id
        self._refuse_link(folder)
        make_private_folders(folder)
        with self._claim(folder, wait) as claimed:
            yield folder if claimed else None

    @contextmanager
    def claim(self, cell_id: str, env_id: str, wait: Callable[[float], bool]) -> Iterator[bool]:
        """Work on a cell alone: another process that claims it waits until this one is done.

        The claim is a lock that the system drops with the process that holds it, so a killed one leaves none behind.

        Args:
            wait: sleeps for the seconds it is given; False ends the waiting.

        Yields:
            Whether the cell is claimed; False when the waiting was ended.

        Raises:
            UsageError: a symbolic link lies in the cell's way, or something that is no file where the lock belongs.
            OSError: the study cannot be written.
        """
        with self._claim(self._folder_to_write(cell_id, env_id), wait) as claimed:
            yield claimed

    @contextmanager
    def _claim(self, folder: Path, wait: Callable[[float], bool]) -> Iterator[bool]:
        claim = folder / ".claim"
        self._refuse_link(claim)
        with open(os.open(claim, LOCK, FOR_ITS_USER), "rb") as file:
            refuse_odd_file(file.fileno(), str(claim))
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

        Raises:
            RowStays: there is something else, which must not be replaced.
            UsageError: there is a row that cannot be read.
        """
        path = self.folder(cell_id, env_id) / "result.json"
        try:
            return self._row_at(path) if os.path.lexists(path) else None
        except FileNotFoundError:  # another process has just begun to measure it anew
            return None

    def has_folder(self, result: Result) -> bool:
        """Whether the folder of a row that was kept is still there; True also where nobody can tell."""
        try:
            self.folder(result.cell_id, result.env_id).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    def keep(self, result: Result) -> None:
        """Write a row; it is there whole or not at all. Raises OSError where the study cannot be written."""
        folder = self._folder_to_write(result.cell_id, result.env_id)
        write_json(folder / "result.json", result.model_dump(mode="json"))

    @property
    def _cells(self) -> Path:
        return self.path / "cells"

    @property
    def _drawings(self) -> Path:
        return self.path / "drawings"

    def _row_at(self, path: Path) -> Result:
        """The row in its place. Raises UsageError, such as RowStays, for what is none of this place."""
        self._refuse_link(path)
        result, folder = read_result(path), path.parent
        if (result.cell_id, result.env_id) != (folder.parent.name, folder.name):
            said = f"{result.cell_id:.40}/{result.env_id:.40}"
            raise RowStays(f"{path} is the row of another cell or environment, {said}. {STAYS}")
        return result

    def _folder_to_write(self, cell_id: str, env_id: str) -> Path:
        folder = self.folder(cell_id, env_id)
        self._refuse_link(folder)
        make_private_folders(folder)
        return folder

    def _refuse_link(self, path: Path) -> None:
        """Raises UsageError where a link lies between the study's path and one below it."""
        refuse_link(self.path, path)
