"""Runs the cells of a sweep by a launcher, under one request to stop. Never imports torch."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from diffopt.errors import Interrupted
from diffopt.machine.compile_cache import compile_caches_of_user
from diffopt.machine.interpreter import Interpreter, interpreters
from diffopt.machine.temporary import remove_abandoned_folders
from diffopt.recipe.cell import Cell
from diffopt.recipe.labels import cell_label_line, cell_labels
from diffopt.recipe.launch import Launch, default_launch
from diffopt.recipe.planned import Plan
from diffopt.recipe.rules import notes_on_cells
from diffopt.results.result import Result
from diffopt.results.study import Study
from diffopt.run.budget import Budget
from diffopt.run.dry_call import plan_cells
from diffopt.run.events import CellFinished, Listener, SweepFinished, SweepStarted, silent_listener
from diffopt.run.launchers import Launcher, launcher
from diffopt.run.process import Stop
from diffopt.run.refused import row_of_refused_cell
from diffopt.run.runner import Runner

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_one(
    cell: Cell,
    *,
    study: str | Path | Study | None = None,
    launch: Launch | None = None,
    listener: Listener = silent_listener,
    deep: bool = True,
) -> Result:
    """Measure one cell and keep its row, whatever becomes of it; see :func:`run_single`."""
    return run_single(cell, study=study, launch=launch, listener=listener, deep=deep)[0]


def run_single(
    cell: Cell,
    *,
    study: str | Path | Study | None = None,
    launch: Launch | None = None,
    listener: Listener = silent_listener,
    others: Mapping[str, Interpreter] | None = None,
    anew: bool = False,
    deep: bool = True,
) -> tuple[Result, Study | None]:
    """Measure one cell, see :func:`run_all`. One that is refused before a worker is started makes no study.

    Args:
        study: name, directory or Study that keeps its row; a fresh one without.

    Returns:
        The row, and the study that has it: None where it was refused and there was no such study yet.
    """
    with interpreters([cell.runtime]) if others is None else nullcontext(others) as found:
        (plan,) = plan_cells([cell], deep=deep, others=found, listener=listener)
        if not isinstance(study, Study) and (study is None or not Study.exists(study)):
            refused = row_of_refused_cell(plan, found.get(cell.runtime.name))
            if refused is not None:
                _tell_refused(refused, listener)
                return refused, None
        compile_caches_of_user()  # asked before there is a study
        study = _study(study)
        (result,) = _run_plans([plan], study, launch, listener, found, anew=anew)
    return result, study


def run_all(
    cells: Sequence[Cell],
    study: str | Path | Study | None = None,
    launch: Launch | None = None,
    listener: Listener = silent_listener,
    others: Mapping[str, Interpreter] | None = None,
    *,
    anew: bool = False,
    deep: bool = True,
) -> list[Result]:
    """Measure each distinct cell, skip those whose row the study keeps, and return the rows in the order asked.

    With ``measure.rounds`` the first round of every cell comes before the second of any.

    With ``launch.minutes`` cells begin in the order of :meth:`Budget.in_order`. One that cannot begin, or not end, for
    want of time has a row as well, ``interrupted``; one that has a row already keeps that.

    A row that the study does not take, such as on a full disk, is given as an error with its figures. So is one whose
    folder was removed meanwhile.

    Args:
        study: name, directory or Study; continued where it stopped. None makes a fresh one.
        launch: where they run, see launchers, and deadlines; None takes the shipped ``launch=local``.
        listener: called with the events of events.py, one at a time.
        others: what :func:`interpreters` gave for the cells' runtimes, where that lasts already; None asks them.
        anew: measure also the cells of which the study keeps a row, which is then replaced.
        deep: see :func:`plan_cells`.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGHUP came. The rows so far are kept, with those of the interrupted cells.
        UsageError: the launcher or the study cannot be used, or a cell's interpreter.
        Refusal: the compile caches are not this user's alone.
    """
    compile_caches_of_user()  # likewise asked before there is a study
    distinct = list({cell.id: cell for cell in cells}.values())
    with interpreters(cell.runtime for cell in cells) if others is None else nullcontext(others) as found:
        plans = plan_cells(distinct, deep=deep, others=found, listener=listener)
        rows = _run_plans(plans, study, launch, listener, found, anew=anew)
    by_id = {row.cell_id: row for row in rows}
    return [by_id[cell.id] for cell in cells]


def _run_plans(
    plans: Sequence[Plan],
    study: str | Path | Study | None,
    launch: Launch | None,
    listener: Listener,
    others: Mapping[str, Interpreter],
    *,
    anew: bool,
) -> list[Result]:
    """The rows of distinct cells, in their order; see :func:`run_all`."""
    launch = default_launch() if launch is None else launch
    budget = Budget(launch)
    by = launcher(launch.kind)
    distinct, by_id = [plan.cell for plan in plans], {plan.cell.id: plan for plan in plans}
    remove_abandoned_folders()
    with _stopping(budget.end) as stop:
        study = _study(study)
        budget.learn(study)
        runner = Runner(study, launch, listener, stop, budget, by_id, _names(distinct), others, anew)
        runner.tell(SweepStarted(len(distinct), launch.minutes, notes_on_cells(distinct)))
        rows = runner.not_kept.without_removed(_rows_of_rounds(by, budget.in_order(distinct), runner))
        ended = tuple(rows[cell.id] for cell in distinct if cell.id in rows)
        runner.tell(SweepFinished(ended, asked=len(distinct), not_kept=runner.not_kept.in_words(ended)))
    if stop.signal is not None:
        raise Interrupted(stop.signal, study.asked_for)
    return [rows[cell.id] for cell in distinct]


def _rows_of_rounds(launch: Launcher, cells: Sequence[Cell], runner: Runner) -> dict[str, Result]:
    """The first round of every cell, then the second of those that have one: the machine's drift meets all alike."""
    rows: dict[str, Result] = {}
    for number in range(1, max((cell.measure.rounds for cell in cells), default=0) + 1):
        runner.round = number
        waiting = [cell for cell in cells if cell.id not in rows]
        if waiting and not runner.stopped:
            rows |= {row.cell_id: row for row in launch.run(waiting, runner)}
    return rows


def _study(given: str | Path | Study | None) -> Study:
    """The study to write to."""
    if isinstance(given, Study):
        return given
    return Study.fresh() if given is None else Study.create(given)


def _tell_refused(result: Result, listener: Listener) -> None:
    """What a sweep of that cell would tell."""
    listener(SweepStarted(1, notes=result.notes))
    listener(CellFinished(result, result.cell_id))
    listener(SweepFinished((result,), asked=1))


def _names(cells: Sequence[Cell]) -> dict[str, str]:
    """What the progress calls each cell: what tells it from the others; its id when there is nothing to tell."""
    found = cell_labels([cell.model_dump(mode="json") for cell in cells])
    return {cell.id: cell_label_line(words) or cell.id for cell, words in zip(cells, found, strict=True)}


@contextmanager
def _stopping(end: float) -> Iterator[Stop]:
    """Signals become a request to stop while this lasts. Only the main thread can take them; others stop at the end.

    SIGHUP, which a terminal sends when it is closed, is left alone where it is ignored: ``nohup`` asks for that.
    """
    stop = Stop(end)
    main = threading.current_thread() is threading.main_thread()
    heeded = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded} if main else {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.close()
