"""A study: a directory of results. What a sweep writes, what a report reads.

    NAME/cells/<cell_id>/<env_id>/{cell.yaml, result.json, log.txt, 0.png, …}

Each row is its own folder and each file appears whole, so processes on many machines may write different cells of one
study at once. There is no index and nothing shared: what the directory holds is the state.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffopt.errors import UsageError
from diffopt.result import Result, read_result, write_json

ROOT = Path("studies")  # of named studies, in the working directory
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Study:
    """A directory of results. Make one with :meth:`open`, :meth:`create` or :meth:`fresh`."""

    path: Path

    @classmethod
    def open(cls, name_or_path: str | Path) -> Study:
        """A study to read. Raises UsageError when there is none, naming those that there are."""
        study = cls(_locate(name_or_path))
        if not (study.path / "cells").is_dir():
            there = sorted(path.parent.name for path in ROOT.glob("*/cells"))
            known = f" {ROOT}/ has {', '.join(there)}." if there else f" There is none in {ROOT}/ yet."
            raise UsageError(f"study={name_or_path}: {study.path} is not a study.{known}")
        return study

    @classmethod
    def create(cls, name_or_path: str | Path) -> Study:
        """A study to write: a new one, or one that continues where it stopped."""
        study = cls(_locate(name_or_path))
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
        ROOT.mkdir(exist_ok=True)
        path = ROOT / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        path.mkdir(exist_ok=False)
        return cls.create(path)

    @property
    def name(self) -> str:
        return self.path.name

    def folder(self, cell_id: str, env_id: str) -> Path:
        """Where the row of a cell in an environment lies; it need not exist."""
        return self.path / "cells" / cell_id / env_id

    def results(self, on_unreadable: Callable[[UsageError], None] | None = None) -> tuple[Result, ...]:
        """All rows, ordered by id.

        Args:
            on_unreadable: told of each file that is not a result, which is then left out.

        Raises:
            UsageError: for such a file, when there is nobody to tell.
        """
        found = []
        for path in sorted(self.path.glob("cells/*/*/result.json")):
            try:
                found.append(read_result(path))
            except UsageError as error:
                if on_unreadable is None:
                    raise
                on_unreadable(error)
        return tuple(found)

    def kept(self, cell_id: str, env_id: str) -> Result | None:
        """The row of a cell that need not run again: ok, out of memory, or refused by its plan.

        Refusals for want of a device or a package (their stage is ``load``) and every failure run again.
        Raises UsageError when there is a row that cannot be read.
        """
        path = self.folder(cell_id, env_id) / "result.json"
        if not path.exists():
            return None
        result = read_result(path)
        final = result.status in ("ok", "oom") or (result.status == "refused" and result.stage == "plan")
        return result if final else None

    def keep(self, result: Result) -> None:
        """Write a row; it is there whole or not at all."""
        folder = self.folder(result.cell_id, result.env_id)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "result.json", result.model_dump(mode="json"))


def _locate(name_or_path: str | Path) -> Path:
    """``NAME`` means studies/NAME; whatever has a separator in it is a path."""
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.startswith("~"):
        return Path(name_or_path).expanduser()
    if not NAME.fullmatch(text):
        raise UsageError(f"study={text}: a study's name has letters, digits, '.', '_' and '-'; a path has a '/' in it.")
    return ROOT / text
