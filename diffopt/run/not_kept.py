"""Rows that a study does not take: which, why, and what to do, in words."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffopt.errors import DiffoptError
from diffopt.results.result import Result
from diffopt.results.study import Study
from diffopt.run.row import row_that_is_not_kept

NAMED = 6  # cells that a paragraph names; of the others it has the number
_RIGHTS = "Make the study writable for you (chmod, chown, chattr -i, the mount), or give another study=."
_ROOM = "Make room on that disk, or give a study= on another one."
_GONE = "It was removed or renamed while the sweep ran: put it back to have its rows."
_REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _RIGHTS),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _ROOM),
    **dict.fromkeys((errno.ENOENT, errno.ESTALE), _GONE),
    errno.EFBIG: "Allow larger files (ulimit -f unlimited).",
}


@dataclass(frozen=True)
class _Trouble:
    reason: str  # a sentence or two, without the last full stop
    remedy: str | None  # None: the reason has it


class RowsNotKept:
    """Those of a sweep into one study. Threads may share one: each cell is one thread's."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._troubles: dict[str, _Trouble] = {}  # by cell

    def note(self, cell_id: str, error: OSError | DiffoptError) -> str:
        """Take that the row of a cell is not kept, or the cell not even measured, and say why."""
        self._troubles[cell_id] = _trouble(error)
        return self._troubles[cell_id].reason

    def without_removed(self, rows: Mapping[str, Result]) -> dict[str, Result]:
        """The rows by cell, as errors those whose folder was removed after they were kept."""
        found = dict(rows)
        for cell_id, result in rows.items():
            if cell_id not in self._troubles and not self._study.has_folder(result):
                folder = str(self._study.folder(cell_id, result.env_id))
                gone = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder)
                found[cell_id] = row_that_is_not_kept(result, self.note(cell_id, gone))
        return found

    def in_words(self, rows: Sequence[Result]) -> str | None:
        """A paragraph on those among the rows of a sweep; None where all are kept."""
        lost = {row.cell_id: self._troubles[row.cell_id] for row in rows if row.cell_id in self._troubles}
        if not lost:
            return None
        said = [f"{len(lost)} of {len(rows)} rows of this sweep are not in the study {self._study.path}."]
        alike: dict[str, list[str]] = {}  # once for each remedy, since one disk has one trouble
        for cell_id, trouble in lost.items():
            alike.setdefault(trouble.remedy or trouble.reason, []).append(cell_id)
        for cells in alike.values():
            more = f" and {len(cells) - NAMED} more" if len(cells) > NAMED else ""
            trouble = lost[cells[0]]
            said.append(f"{', '.join(cells[:NAMED])}{more}: {trouble.reason}.")
            said += [] if trouble.remedy is None else [trouble.remedy]
        said.append(f"The other {len(rows) - len(lost)} are kept." if len(rows) > len(lost) else "None is kept.")
        return " ".join([*said, "The same command then measures what has no row."])


def _trouble(error: OSError | DiffoptError) -> _Trouble:
    if isinstance(error, DiffoptError):
        return _Trouble(str(error).removesuffix("."), None)
    place = f"{error.filename}: " if error.filename else ""
    remedy = _REMEDIES.get(error.errno or 0, "Mend that, or give another study=.")
    return _Trouble(f"{place}{error.strerror or error}", remedy)
