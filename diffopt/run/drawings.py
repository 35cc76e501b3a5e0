"""The pictures that cells are compared with, each drawn once per study by a process of its own. No torch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from diffopt.errors import UsageError
from diffopt.machine.compile_cache import compile_caches_of_user
from diffopt.machine.environment import Environment
from diffopt.machine.files import remove_whatever, write_json
from diffopt.machine.interpreter import Interpreter
from diffopt.machine.reading import MIB, read_file
from diffopt.machine.temporary import temporary_folder, told_as_place_of_temporary_files
from diffopt.recipe.cell import Cell
from diffopt.recipe.launch import Launch
from diffopt.recipe.planned import Plan
from diffopt.recipe.quality import comparisons_of_cell, drawing_id
from diffopt.results.drawing import LATENTS, QUALITY, Against, AskedComparisons, Drawing
from diffopt.results.frames import lossless_pictures
from diffopt.results.quality import Floor
from diffopt.results.study import Study
from diffopt.run import row
from diffopt.run.events import DrawingStarted, Event
from diffopt.run.process import AGAIN, PLAN, Stop, Verdict, run_worker_process
from diffopt.run.starts import without_artifact
from diffopt.schema.words import one_line

DRAWING = "drawing.json"
SETTLED = ("refused", "oom")  # of a drawing: it would end so again


@dataclass
class Drawings:
    """What the cells of a sweep are compared with. Threads may share one."""

    study: Study
    launch: Launch
    stop: Stop
    others: Mapping[str, Interpreter]
    tell: Callable[[Event], None]
    _tried: dict[tuple[str, str], Drawing] = field(default_factory=dict)  # by this sweep, those that failed among them

    def comparisons(self, cell: Cell, where: Environment, gpu: str | None) -> AskedComparisons | Verdict:
        """The pictures of a cell's reference and of its floors, drawn where the study has them not.

        A verdict where the sweep is to end.
        """
        asked = comparisons_of_cell(cell)
        reference = self._against("reference", asked.reference, where, gpu)
        if isinstance(reference, Verdict):
            if reference.status == "interrupted":
                return reference
            settled = reference.status in SETTLED
            return AskedComparisons(reference=None, reason=f"no reference: {_in_words(reference)}", settled=settled)
        floors: dict[str, Against] = {}
        without: list[Floor] = []
        for changed, plan in asked.floors.items():
            found = self._against(changed, plan, where, gpu)
            if isinstance(found, Against):
                floors[changed] = found
            elif found.status == "interrupted":
                return found
            else:
                without.append(Floor(changed=changed, distance=None, reason=_in_words(found)))
        return AskedComparisons(
            reference=reference,
            own=drawing_id(cell),
            floors=floors,
            without=tuple(without),
        )

    def _against(self, label: str, plan: Plan, where: Environment, gpu: str | None) -> Against | Verdict:
        if plan.problems:
            return Verdict("refused", "plan", "\n".join(plan.reasons))
        try:
            return self._made(label, plan, where, gpu)
        except (OSError, UsageError) as error:
            return Verdict("error", "quality", f"its pictures cannot be kept in the study: {one_line(error)}")

    def _made(self, label: str, plan: Plan, where: Environment, gpu: str | None) -> Against | Verdict:
        key = drawing_id(plan.cell), where.id
        with self.study.claim_drawing(*key, self.stop.wait) as folder:
            if folder is None:
                return Verdict("interrupted", "quality", f"the sweep was to end while another process drew it; {AGAIN}")
            drawing = self._tried.get(key) or _kept_drawing(folder, len(plan.cell.quality.pictures))
            if drawing is None:
                self.tell(DrawingStarted(label))
                drawing = self._draw(key[0], plan, folder, gpu)
                if drawing.status != "interrupted":
                    self._tried[key] = drawing
            if drawing.status != "ok":
                return Verdict(drawing.status, drawing.phase, drawing.reason)
            return Against(folder=str(folder / QUALITY), drawing=drawing)

    def _draw(self, own_id: str, plan: Plan, folder: Path, gpu: str | None) -> Drawing:
        remove_whatever(folder / DRAWING)
        row.prepare_folder_for_run(folder, plan.cell)
        begin = time.monotonic()
        with temporary_folder("drawing") as place:
            with told_as_place_of_temporary_files(place):
                plan.write(place / PLAN)
            verdict = run_worker_process(
                folder,
                without_artifact(self.launch),
                self.stop,
                gpu=gpu,
                on_phase=lambda phase: None,
                interpreter=self.others.get(plan.cell.runtime.name),
                places={**compile_caches_of_user(), "TMPDIR": str(place)},
                exchange=place,
                draw_only=True,
            )
        drawing = Drawing(
            id=own_id,
            status=verdict.status,
            phase=verdict.phase,
            reason=verdict.reason,
            pictures=() if verdict.outcome is None else verdict.outcome.drawn,
            seconds=round(time.monotonic() - begin, 2),
        )
        if drawing.status != "interrupted":
            write_json(folder / DRAWING, drawing.model_dump(mode="json"))
        return drawing


def _in_words(verdict: Verdict) -> str:
    return f"{verdict.status} at {verdict.phase}: {verdict.reason}"


def _kept_drawing(folder: Path, count: int) -> Drawing | None:
    """What the study has; None where it was not drawn, did not end well, or is not whole: it is drawn anew."""
    try:
        found = Drawing.from_plain(json.loads(read_file(folder / DRAWING, DRAWING, MIB, follow=False)))
    except (OSError, UsageError, ValueError, ValidationError, RecursionError):
        return None
    if found.status == "ok" and not _is_whole(folder / QUALITY, found.pictures, count):
        return None
    return found if found.status in ("ok", "oom") else None


def _is_whole(folder: Path, names: Sequence[str], count: int) -> bool:
    """Whether all pictures of these names lie there, with their latents. A study may come from anybody."""
    if len(names) != count or not (folder / LATENTS).is_file():
        return False
    known = all(name in (f"{i}.png", f"{i}.gif") for i, name in enumerate(names))
    return known and all((frames := lossless_pictures(folder, n)) and frames[0].is_file() for n in names)
