"""The child process that builds and measures one cell: ``python -m diffopt.pipeline.worker PLAN OUT --progress-fd N``.

It writes the phase it enters to the progress descriptor, one JSON object a line, and ends by writing its outcome.
Whatever it prints goes to the row's log. Whoever started it ends what it leaves.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffopt.errors import Refusal
from diffopt.machine import packages
from diffopt.machine.compile_cache import Artifact, load_compile_cache_artifact, save_compile_cache_artifact
from diffopt.machine.files import write_json
from diffopt.machine.garbage import no_garbage_collection
from diffopt.machine.nvml import Device, gpu_device
from diffopt.machine.others import OtherProcesses
from diffopt.pipeline.build import build_pipelines, verify_steps
from diffopt.pipeline.device_check import check_pipeline_device
from diffopt.pipeline.failure import describe_pipeline_error, status_of_pipeline_error
from diffopt.pipeline.outputs import save_pictures
from diffopt.pipeline.peak_memory import PeakMeter, peak_memory_meter
from diffopt.recipe.cell import Cell
from diffopt.recipe.planned import Plan, read_plan_file
from diffopt.results.drawing import COMPARISONS, QUALITY, read_comparisons
from diffopt.results.quality import QualityFigures
from diffopt.results.result import Metrics, Outcome, PeakMemory, PeakReserved, Phase, StepEffect
from diffopt.results.rounds import read_ended_rounds
from diffopt.results.samples import Sample

if TYPE_CHECKING:
    from diffopt.pipeline.meter import Meter


def main(arguments: Sequence[str] | None = None) -> None:
    """Work on one cell and leave; never returns to the caller."""
    parser = argparse.ArgumentParser(prog="python -m diffopt.pipeline.worker", description="Measure one cell.")
    parser.add_argument("plan", type=Path)
    parser.add_argument("outcome", type=Path)
    parser.add_argument("--progress-fd", type=int, required=True)
    parser.add_argument("--folder", type=Path, help="of the row, for pictures and what compiling leaves; else OUT's")
    parser.add_argument("--start-only", action="store_true", help="end after the first call")
    parser.add_argument("--draw-only", action="store_true", help="draw the pictures of cell.quality and nothing else")
    parser.add_argument("--save-artifact", action="store_true", help="keep what compiling left behind beside the row")
    parser.add_argument("--load-artifact", type=Path, help="start from such a file")
    parser.add_argument("--sha256", help="of that file")
    parser.add_argument("--gpu", help="NVML uuid of the only GPU that is visible")
    options = parser.parse_args(arguments)
    os.set_inheritable(options.progress_fd, False)  # a process of ours that outlives us must not keep it open

    def report(phase: Phase) -> None:
        os.write(options.progress_fd, json.dumps({"phase": phase}).encode() + b"\n")

    def keep(outcome: Outcome) -> None:
        write_json(options.outcome, outcome.model_dump(mode="json"))

    artifact = None if options.load_artifact is None else (options.load_artifact, options.sha256)
    work = Work(
        options.plan,
        options.folder or options.outcome.parent,
        report=report,
        keep=keep,
        gpu=options.gpu,
        start_only=options.start_only,
        draw_only=options.draw_only,
        load_artifact=artifact,
        save_artifact=options.save_artifact,
    )
    keep(work.outcome())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # taking torch apart takes seconds, and a crash in it would say nothing of the cell


class Work:
    """One cell's way through the phases. What has been learned so far becomes the outcome wherever the way ends."""

    def __init__(
        self,
        plan_file: Path,
        folder: Path,
        *,
        report: Callable[[Phase], None],
        gpu: str | None,
        keep: Callable[[Outcome], None] = lambda outcome: None,
        start_only: bool = False,
        draw_only: bool = False,
        load_artifact: tuple[Path, str] | None = None,
        save_artifact: bool = False,
    ) -> None:
        self._plan_file, self._folder, self._report, self._gpu = plan_file, folder, report, gpu
        self._keep = keep
        self._start_only, self._draw_only = start_only, draw_only
        self._load_artifact, self._save_artifact = load_artifact, save_artifact
        self._artifact: Artifact | None = None
        self._phase: Phase = "load"  # the parent knows that it begins with this one
        self._memory: PeakMeter | None = None
        self._metrics: dict[str, Any] = {}
        self._effects: tuple[StepEffect, ...] = ()
        self._complaints: list[str] = []
        self._not_finite: list[str] = []  # where in the last call of the warm-up
        self._samples: tuple[Sample, ...] = ()
        self._pictures: tuple[str, ...] = ()
        self._drawn: tuple[str, ...] = ()
        self._quality: QualityFigures | None = None
        self._device: Device | None = None

    def outcome(self) -> Outcome:
        """Do the work. Every exception becomes an outcome, its traceback a part of the log."""
        try:
            self._run()
        except Exception as error:  # the border of the process: beyond it there are only rows
            traceback.print_exc()
            self._note_peak()
            return self._outcome(status_of_pipeline_error(error), describe_pipeline_error(error))
        return self._outcome_of_measured()

    def _outcome_of_measured(self) -> Outcome:
        return self._outcome("ok", "; ".join(self._complaints) or None)

    def _run(self) -> None:
        plan = _plan(self._plan_file)
        _import_libraries(plan.cell)
        check_pipeline_device(plan.cell.recipe.hardware, self._gpu)
        device = plan.cell.recipe.hardware.device
        if self._load_artifact is not None:
            load_compile_cache_artifact(*self._load_artifact, device)
        self._memory = peak_memory_meter(device)
        begin = time.perf_counter()
        pipes = build_pipelines(plan, on_phase=self._enter)
        self._metrics["load_s"] = time.perf_counter() - begin

        from diffopt.pipeline.meter import Meter  # here and below: it imports torch, which main must not wait for

        meter = Meter(pipes, plan.cell)
        self._memory = meter.memory
        if self._draw_only:
            self._judge(meter, plan.cell)
            self._effects = verify_steps(plan, pipes)
            return
        self._call_first(meter)
        if self._start_only:
            return
        self._warm_up(meter, plan.cell.measure.warmup)
        self._effects = verify_steps(plan, pipes)
        if self._save_artifact:
            self._artifact = save_compile_cache_artifact(self._folder / "compile-cache.zip", device)
        self._measure(meter, plan.cell)
        if (self._plan_file.parent / COMPARISONS).exists():
            self._judge(meter, plan.cell)
        if self._not_finite:
            del meter, pipes  # what finds the step builds them again
            self._explain_values(plan)

    def _explain_values(self, plan: Plan) -> None:
        from diffopt.pipeline.not_finite import free_memory, since_which_step

        free_memory()
        self._complaints.append(f"values are not finite {self._not_finite[0]}: {since_which_step(plan)}")

    def _call_first(self, meter: Meter) -> None:
        from diffopt.pipeline.meter import compile_cache_use_in_worker

        self._enter("compile")
        meter.memory.reset()
        self._metrics["first_call_s"] = meter.call().latency
        self._metrics["compile_cache"] = compile_cache_use_in_worker()
        self._note_peak()
        if self._load_artifact is not None and not _cached_graphs():
            name = self._load_artifact[0].name
            self._complaints.append(f"the compile artifact {name} was loaded, but no graph came from it")

    def _warm_up(self, meter: Meter, calls: int) -> None:
        from diffopt.pipeline.not_finite import noting_not_finite

        self._enter("warmup")
        meter.memory.reset()
        self._metrics["warmup_s"] = sum(meter.call().latency for _ in range(calls - 1))
        with noting_not_finite(meter.stages) as self._not_finite:
            self._metrics["warmup_s"] += meter.call().latency

    def _measure(self, meter: Meter, cell: Cell) -> None:
        from diffopt.pipeline.metrics import medians_of_rounds_in_words, timed_metrics

        earlier = [ended.outcome.samples for ended in read_ended_rounds(self._folder, cell.measure.rounds)]
        self._enter("measure")
        meter.memory.reset()
        others = OtherProcesses()
        self._samples = tuple(meter.samples())
        busy = others.in_words()
        self._note_peak()
        rounds = [*earlier, self._samples]
        samples = [sample for own in rounds for sample in own]
        self._metrics |= timed_metrics(samples, meter.outputs)
        fps = cell.recipe.model.fps
        seeds = range(cell.workload.seed, cell.workload.seed + len(meter.outputs))
        self._pictures = save_pictures(meter.outputs, self._folder, cell.id, seeds, fps=fps)
        if len(rounds) == cell.measure.rounds:  # the drift from round to round counts, so all of them are waited for
            self._complaints += meter.noise(samples, medians_of_rounds_in_words(rounds) + busy)
        self._complaints += meter.complaints()
        if self._gpu is not None:
            self._look_at_gpu(meter, self._gpu)

    def _judge(self, meter: Meter, cell: Cell) -> None:
        """What the pictures are beside those that they are compared with. Nothing that happens here costs a figure.

        What was measured is written first: it counts also where this process does not come to its end.
        """
        from diffopt.pipeline.quality.judge import draw_and_judge, draw_as_reference

        if self._draw_only:
            self._enter("quality")
            self._drawn = draw_as_reference(meter, cell, self._folder / QUALITY)
            return
        asked = read_comparisons(self._plan_file.parent)
        self._quality = QualityFigures(reason="the process ended before the pictures were compared", settled=False)
        self._keep(self._outcome_of_measured())
        self._enter("quality")
        try:
            self._quality = draw_and_judge(meter, cell, self._folder / QUALITY, asked)
        except Exception as error:  # what was measured is right for all that, and the row says why there is no more
            traceback.print_exc()
            said = f"the pictures could not be compared: {describe_pipeline_error(error)}"
            self._quality = QualityFigures(reason=said, settled=False)

    def _look_at_gpu(self, meter: Meter, uuid: str) -> None:
        """Keep the state of the GPU at work, and complain where it was forced to be slow, or where nobody can tell."""
        try:
            self._device = meter.observe(lambda: gpu_device(uuid))
        except Refusal as error:  # the samples are good for all that
            self._complaints.append(f"whether the GPU throttled is not known: {error}")
            return
        if self._device.gpu is not None and (reasons := self._device.gpu.slowdowns):
            self._complaints.append(f"the GPU was slowed down: {', '.join(reasons)}")

    def _enter(self, phase: Phase) -> None:
        if phase != self._phase:
            self._phase = phase
            self._report(phase)

    def _note_peak(self) -> None:
        if self._memory is None:
            return
        if self._phase == "quality":  # the figures of the samples stay
            return
        key = "steady" if self._phase in ("warmup", "measure") else "first_call"
        used = self._metrics.get("peak_memory_bytes", PeakMemory())
        self._metrics["peak_memory_bytes"] = used.model_copy(update={key: self._memory.peak()})
        held = self._metrics.get("peak_reserved_bytes", PeakReserved())
        self._metrics["peak_reserved_bytes"] = held.model_copy(update={key: self._memory.reserved()})

    def _outcome(self, status: Any, reason: str | None) -> Outcome:
        return Outcome(
            status=status,
            phase=self._phase,
            reason=reason,
            valid=status == "ok" and not self._complaints,
            effects=self._effects,
            metrics=Metrics(**self._metrics),
            samples=self._samples,
            pictures=self._pictures,
            drawn=self._drawn,
            quality=self._quality,
            compile_cache=None if self._artifact is None else self._artifact.path.name,
            compile_cache_sha256=None if self._artifact is None else self._artifact.sha256,
            device=self._device,
        )


def _cached_graphs() -> int:
    """Graphs that inductor took from its cache in this process; packages of compile=aot are none of them."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["fxgraph_cache_hit"])


def _plan(file: Path) -> Plan:
    """Read the plan. Raises Refusal for what only this process can tell of it: whether its packages are here."""
    plan = read_plan_file(file)
    if (reason := packages.reason_of_lacking(step.requires() for _, step in plan.steps)) is not None:
        raise Refusal(reason)
    return plan


def _import_libraries(cell: Cell) -> None:
    """Import what every cell of this pipeline needs, before the clock of ``load_s`` starts.

    What was imported is searched for garbage at no later time either, so no call that is measured waits for that.
    """
    tasks = (cell.workload.task, *(later.task for later in cell.recipe.model.cascade))
    with no_garbage_collection():
        import diffusers

        for model, task in zip(cell.recipe.model.stages, tasks, strict=True):
            getattr(diffusers, str(getattr(model.pipelines, task)), None)  # loading says what is wrong with a name
        gc.freeze()


if __name__ == "__main__":
    main()
