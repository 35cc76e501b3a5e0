"""The row of a cell: its folder, and what a worker's verdict becomes in it. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffopt.machine.environment import Environment
from diffopt.machine.files import make_private_folders, remove_whatever, rename_file, write_text
from diffopt.machine.reading import refuse_odd_file
from diffopt.recipe import lock
from diffopt.recipe.cell import Cell
from diffopt.recipe.named_files import files_named_by_recipe
from diffopt.recipe.rules import notes_on_cell
from diffopt.results.drawing import QUALITY
from diffopt.results.frames import frame_folders
from diffopt.results.result import Artifacts, Outcome, Result
from diffopt.results.rounds import ROUNDS, EndedRound, outcome_of_rounds, write_ended_rounds
from diffopt.run.process import OUTCOME, PLAN, Verdict

CELL, ROW = "cell.yaml", "result.json"
EARLIER = "result.json.earlier"  # a row that is measured anew, until the new one is there
BETWEEN_PROCESSES = (PLAN, OUTCOME, ".*.tmp")  # what older versions said to each other here, what is written in part
OF_ONE_ROUND = (ROW, *BETWEEN_PROCESSES, "log.txt", "*.png", "*.gif", "*.mp4")
OF_ALL_ROUNDS = (ROUNDS, "log-*.txt", "*.zip")


def prepare_folder_for_run(folder: Path, cell: Cell, ended: Sequence[EndedRound] = ()) -> None:
    """The folder of a row, with the cell in it, as ``show`` prints it, and nothing of an earlier try.

    Nothing is removed before the cell is written: where that cannot be, an earlier row stays.

    Args:
        ended: the rounds of this try that lie in it, and stay.

    Raises:
        UsageError: something that is neither a file nor a link has a name of these; nothing is removed.
        OSError: the folder cannot be written.
    """
    make_private_folders(folder)
    patterns = OF_ONE_ROUND if ended else (*OF_ONE_ROUND, *OF_ALL_ROUNDS)
    stale = [path for pattern in patterns for path in folder.glob(pattern)]
    for path in (*stale, folder / CELL):
        if os.path.lexists(path) and not path.is_symlink():
            refuse_odd_file(path, f"{path} is in the way")
    write_text(folder / CELL, lock.recipe_to_yaml(cell))
    for path in (*stale, *frame_folders(folder), folder / QUALITY):
        remove_whatever(path)


def tidy_folder_of_final_row(folder: Path) -> None:
    """Remove what lies beside a row that stays: rounds that are in it, and what killed processes were writing.

    Nothing else needs that, so a study that may not be written keeps it.
    """
    with suppress(OSError):
        for stale in leftovers_beside_row(folder):
            remove_whatever(stale)


def set_row_aside(folder: Path) -> None:
    """Before a cell is measured anew; its pictures and its log go all the same."""
    with suppress(FileNotFoundError):
        rename_file(folder / ROW, folder / EARLIER)


def bring_row_back(folder: Path) -> bool:
    """Let a row that was set aside be the row again where there is no other; whether it is."""
    if os.path.lexists(folder / ROW) or not os.path.lexists(folder / EARLIER):
        return False
    rename_file(folder / EARLIER, folder / ROW)
    return True


def leftovers_beside_row(folder: Path) -> list[Path]:
    """What a process that was killed has left beside the row that it had written."""
    return [path for pattern in (*BETWEEN_PROCESSES, ROUNDS, EARLIER) for path in folder.glob(pattern)]


def keep_round(folder: Path, ended: Sequence[EndedRound]) -> None:
    """Keep the rounds of a cell that have ended so far, and the log of the last of them."""
    rename_file(folder / "log.txt", folder / f"log-{len(ended)}.txt")
    write_ended_rounds(folder, ended)


def row_of_ended_run(
    folder: Path | None,
    cell: Cell,
    where: Environment,
    verdict: Verdict,
    seconds: float | None = None,
    ended: Sequence[EndedRound] = (),
) -> Result:
    """The row of a cell that was tried, or refused.

    Args:
        folder: where it will lie, with what the worker left there; None: nowhere.
        where: as it was before the cell ran, which is what the row's ``env_id`` says; the device is kept as the worker
            saw it last.
        seconds: how long its processes took; None: there were none.
        ended: the rounds before that, of which the verdict is no part.
    """
    said = verdict.outcome or Outcome(status="error", phase=verdict.phase)
    reason, rounds = verdict.reason, ended
    if cell.measure.rounds > 1 and verdict.status == "ok" and seconds is not None:
        rounds = (*ended, EndedRound(outcome=said, seconds=seconds))
        said = outcome_of_rounds([each.outcome for each in rounds])
        reason = said.reason
    elif cell.measure.rounds > 1 and (ended or seconds is not None):
        reason = f"round {len(ended) + 1} of {cell.measure.rounds}: {reason}"
    took = [*(each.seconds for each in ended), *([] if seconds is None else [seconds])]
    artifacts = Artifacts(
        log="log.txt" if folder is not None and (folder / "log.txt").exists() else None,
        pictures=said.pictures,
        compile_cache=said.compile_cache,
        compile_cache_sha256=said.compile_cache_sha256,
    )
    return Result(
        cell_id=cell.id,
        env_id=where.id,
        recipe_id=cell.recipe.id,
        status=verdict.status,
        phase=verdict.phase,
        reason=reason,
        valid=said.valid,
        choices=dict(cell.choices),
        cell=cell_for_row(cell),
        effects=said.effects,
        metrics=said.metrics,
        quality=said.quality,
        environment=where if said.device is None else where.model_copy(update={"device": said.device}),
        artifacts=artifacts,
        seconds=round(sum(took), 2) if took else None,
        rounds=tuple(each.for_row() for each in rounds),
        notes=notes_on_cell(cell),
    )


def row_that_is_not_kept(result: Result, why: str) -> Result:
    """The row as its caller gets it where the study has it not: an error, with its figures."""
    said = f"{result.reason}; " if result.reason else ""
    return result.model_copy(update={"status": "error", "valid": False, "reason": f"{said}its row is not kept: {why}"})


def cell_for_row(cell: Cell) -> dict[str, Any]:
    """The cell as plain data without this machine's folders, which cell.yaml has; a picture keeps its file's name."""
    data = cell.model_dump(mode="json", exclude={"choices"})
    data["runtime"]["python"] = None
    for place in files_named_by_recipe({**data["recipe"], "workload": data["workload"]}):
        place.holder[place.key] = None if place.typed.startswith("model.") else Path(place.path).name
    return data
