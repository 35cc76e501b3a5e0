"""The worker processes of a round of a cell: the one that measures it, and before it those that time a start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffopt.errors import Refusal
from diffopt.machine.compile_cache import compile_caches_of_user, packages_of_user, private_compile_caches
from diffopt.machine.interpreter import Interpreter
from diffopt.machine.temporary import (
    remove_abandoned_folders,
    temporary_folder,
    told_as_place_of_temporary_files,
)
from diffopt.recipe.launch import CompileArtifact, Launch
from diffopt.recipe.planned import Plan
from diffopt.results.drawing import AskedComparisons, write_comparisons
from diffopt.results.result import Metrics, Phase, Start, Starts
from diffopt.results.rounds import ROUNDS
from diffopt.run.process import OUTCOME, PLAN, Stop, Verdict, run_worker_process

_NO_ARTIFACT = CompileArtifact(save=False, load=None, sha256=None)


def run_cell_workers(
    plan: Plan,
    folder: Path,
    launch: Launch,
    stop: Stop,
    gpu: str | None,
    on_phase: Callable[[Phase], None],
    interpreter: Interpreter | None = None,
    asked: AskedComparisons | None = None,
) -> Verdict:
    """One round of a cell: its worker; where ``measure.starts`` asks for it, before the first a cold and a warm start.

    All three share compile caches of their own, which are empty at first. Where a start does not end well, that is how
    the cell ended. What compiling left behind is saved in the first round, which had to compile most. Nothing stays of
    their temporary files: torch unpacks what was compiled ahead of time into some, and removes them only at an orderly
    end. There they also find the plan and leave their outcomes, apart from the study.

    Args:
        asked: what the cell's pictures are compared with; None: they are not.
    """
    later = (folder / ROUNDS).exists()
    if later:
        artifact = launch.compile_artifact.model_copy(update={"save": False})
        launch = launch.model_copy(update={"compile_artifact": artifact})

    with temporary_folder("cell") as place, _no_package_in_part():
        with told_as_place_of_temporary_files(place):
            plan.write(place / PLAN)
            if asked is not None:
                write_comparisons(place, asked)

        def child(places: dict[str, str], launch: Launch = launch, **starting: Any) -> Verdict:
            return run_worker_process(
                folder,
                launch,
                stop,
                gpu=gpu,
                on_phase=on_phase,
                interpreter=interpreter,
                places=places,
                exchange=place,
                **starting,
            )

        scratch = {"TMPDIR": str(place)}
        if later or not plan.cell.measure.starts:
            return child({**compile_caches_of_user(), **scratch})
        places = {**private_compile_caches(place), **scratch}
        bare = without_artifact(launch)
        starts = []
        for _ in ("cold", "warm"):
            verdict = child(places, bare, start_only=True)
            if verdict.outcome is None or verdict.status != "ok":
                return verdict
            (place / OUTCOME).unlink()
            starts.append(_start(verdict.outcome.metrics))
        verdict = child(places)
    if verdict.outcome is None:
        return verdict
    metrics = verdict.outcome.metrics.model_copy(update={"starts": Starts(cold=starts[0], warm=starts[1])})
    return replace(verdict, outcome=verdict.outcome.model_copy(update={"metrics": metrics}))


def without_artifact(launch: Launch) -> Launch:
    """The same with no compile artifact, loaded or saved."""
    return launch.model_copy(update={"compile_artifact": _NO_ARTIFACT})


@contextmanager
def _no_package_in_part() -> Iterator[None]:
    """Packages are compiled beside those that are kept, and a killed worker leaves what it had of one."""
    try:
        yield
    finally:
        with suppress(Refusal):  # which the next cell is told; this one's figures are right
            remove_abandoned_folders(packages_of_user())


def _start(metrics: Metrics) -> Start:
    assert metrics.load_s is not None, "a start that ended well was loaded"
    assert metrics.first_call_s is not None, "and called"
    return Start(load_s=metrics.load_s, first_call_s=metrics.first_call_s, compile_cache=metrics.compile_cache)
