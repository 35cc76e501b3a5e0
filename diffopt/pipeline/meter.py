"""Timing a pipeline from outside. Imported by workers only, since it needs torch.

Marks are set where every diffusers pipeline passes: ``encode_prompt``, ``scheduler.set_timesteps``, ``scheduler.step``
(once per iteration) and ``vae.decode``. They are replaced on the instance, so compiled modules, their hooks and their
guards stay as they are, and a call costs a few marks more than a plain one. A cascade has them in each of its stages.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from diffopt.errors import DiffoptError
from diffopt.models import calls
from diffopt.models.calls import Output, Stage
from diffopt.pipeline.outputs import is_constant_picture
from diffopt.pipeline.peak_memory import PeakMeter, peak_memory_meter
from diffopt.pipeline.wrapping import replaced_method
from diffopt.recipe.cell import Cell
from diffopt.results.result import CompileCache
from diffopt.results.samples import Part, Sample
from diffopt.steps.compile.compiled_call import count_recorded_cuda_graphs

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# What a noisy row asks of who reads it.
QUIETER = "the same command measures it again, best on an idle machine; measure.max_variation is the limit"
Observed = TypeVar("Observed")
Mark = Any  # what a clock's mark() gives


class Clock(Protocol):
    """Marks moments in the order of the device's work."""

    def synchronize(self) -> None: ...
    def mark(self) -> Mark: ...
    def seconds(self, begin: Mark, end: Mark) -> float: ...


class HostClock:
    """For the CPU, where work has ended when its call returns."""

    def synchronize(self) -> None:
        return None

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, begin: float, end: float) -> float:
        return end - begin


class CudaClock:
    """Events in the current stream; they are read after the call, so no mark waits for the GPU."""

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def mark(self) -> torch.cuda.Event:
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return float(begin.elapsed_time(end)) / 1000


class Meter:
    """Calls the stages ``pipes`` with the cell's workload and times them.

    Raises Refusal where a pipeline cannot be called so, DiffoptError when one never called its scheduler, and whatever
    the pipelines raise.
    """

    def __init__(self, pipes: Sequence[DiffusionPipeline], cell: Cell) -> None:
        self.stages = calls.calls_of_models(pipes, cell.recipe.model.stages, cell.workload)
        self._cell = cell
        self._clock: Clock = CudaClock() if cell.recipe.hardware.device == "cuda" else HostClock()
        self._marks: dict[str, list[tuple[str, Mark]]] = {stage.name: [] for stage in self.stages}
        self.latents: torch.Tensor | None = None  # after the last iteration of the last call's last stage
        self._iterations = 0  # of the first stage of the last call
        self.memory: PeakMeter = peak_memory_meter(cell.recipe.hardware.device)
        self.outputs: list[Output] = []  # of the last call
        for pipe in pipes:
            pipe.set_progress_bar_config(disable=True)

    def call(self, stages: Sequence[Stage] | None = None) -> Sample:
        """One timed call, end to end: from the prompts to pictures on the host.

        Args:
            stages: the same with other prompts and seeds; None: the workload's.
        """
        for marks in self._marks.values():
            marks.clear()
        with self._marking():
            self._clock.synchronize()
            begin = time.perf_counter()
            self.outputs = calls.draw_pictures(self.stages if stages is None else stages)
            self._clock.synchronize()
            latency = time.perf_counter() - begin
        parts = tuple(_timed_part(name, marks, self._clock) for name, marks in self._marks.items())
        self._iterations = parts[0].iterations
        return Sample(latency, parts)

    def samples(self) -> list[Sample]:
        """The timed part. A recompile in it raises RuntimeError: it would be timed, and then nothing would be true."""
        protocol = self._cell.measure
        samples: list[Sample] = []
        graphs = count_recorded_cuda_graphs()
        with torch.compiler.set_stance("fail_on_recompile"):
            begin = time.perf_counter()
            while len(samples) < protocol.max_samples and (
                len(samples) < protocol.samples or time.perf_counter() - begin < protocol.seconds
            ):
                samples.append(self.call())
        if count_recorded_cuda_graphs() != graphs:
            raise DiffoptError(
                f"{count_recorded_cuda_graphs() - graphs} CUDA graphs were recorded anew in the timed part"
            )
        return samples

    def observe(self, look: Callable[[], Observed]) -> Observed:
        """What ``look`` gives halfway through the iterations of one more call, which is not timed.

        At the end of a call the device is idle already, since pictures were copied to the host; and looking takes
        milliseconds, which no sample should have in it.
        """
        seen: list[Observed] = []
        halfway = (self._iterations + 1) // 2
        done = 0

        def wrap(inner: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(inner)
            def watched(*args: Any, **kwargs: Any) -> Any:
                nonlocal done
                result = inner(*args, **kwargs)
                done += 1
                if done == halfway:
                    seen.append(look())
                return result

            return watched

        with replaced_method(self.stages[0].pipe.scheduler, "step", wrap):
            calls.draw_pictures(self.stages)
        (only,) = seen
        return only

    def noise(self, samples: Sequence[Sample], busy: str = "") -> list[str]:
        """That these samples vary too much to be valid; empty when they do not.

        Args:
            busy: what the machine did meanwhile, in words.
        """
        latencies = [sample.latency for sample in samples]
        variation = statistics.stdev(latencies) / statistics.mean(latencies)
        limit = self._cell.measure.max_variation
        if variation <= limit:
            return []
        said = f"latency varies by {variation:.1%} (standard deviation over mean), more than {limit:.1%}"
        meanwhile = f" ({busy})" if busy else ""
        return [f"{said}{meanwhile}: {QUIETER}"]

    def complaints(self) -> list[str]:
        """Why the last call's latents and pictures are not valid; empty when they are."""
        found = []
        if self.latents is not None and not bool(torch.isfinite(self.latents).all()):
            found.append("the latents of the last sample are not finite")
        constant = [i for i, output in enumerate(self.outputs) if is_constant_picture(output)]
        if constant:
            found.append(f"every pixel is the same in picture {', '.join(map(str, constant))}")
        return found

    @contextmanager
    def _marking(self) -> Iterator[None]:
        with ExitStack() as stack:
            for stage in self.stages:
                pipe, vae, marks = stage.pipe, stage.model.vae, self._marks[stage.name]
                if hasattr(pipe, "encode_prompt"):
                    stack.enter_context(replaced_method(pipe, "encode_prompt", self._around("encode", marks)))
                stack.enter_context(replaced_method(pipe.scheduler, "set_timesteps", self._around("timesteps", marks)))
                stack.enter_context(replaced_method(pipe.scheduler, "step", self._after_step(marks)))
                if vae is not None:
                    stack.enter_context(replaced_method(getattr(pipe, vae), "decode", self._around("decode", marks)))
            yield

    def _around(self, name: str, marks: list[tuple[str, Mark]]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(inner: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(inner)
            def marked(*args: Any, **kwargs: Any) -> Any:
                marks.append((f"{name} begin", self._clock.mark()))
                result = inner(*args, **kwargs)
                marks.append((f"{name} end", self._clock.mark()))
                return result

            return marked

        return wrap

    def _after_step(self, marks: list[tuple[str, Mark]]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(inner: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(inner)  # pipelines read the signature of `step` to learn which arguments it takes
            def marked(*args: Any, **kwargs: Any) -> Any:
                result = inner(*args, **kwargs)
                marks.append(("step", self._clock.mark()))
                self.latents = result[0]  # a tuple, or an output that is indexed like one
                return result

            return marked

        return wrap


def _timed_part(name: str, marks: list[tuple[str, Mark]], clock: Clock) -> Part:
    at = {label: mark for label, mark in marks}
    steps = [mark for label, mark in marks if label == "step"]
    if not steps:
        raise DiffoptError("the pipeline never called its scheduler's step(), so its iterations cannot be timed")
    denoise = clock.seconds(at["timesteps end"], steps[-1])
    # The first iteration cannot be told from what precedes it, so the rate counts from its end, where there are more.
    rate = (len(steps) - 1) / clock.seconds(steps[0], steps[-1]) if len(steps) > 1 else 1 / denoise
    return Part(
        name=name,
        iterations=len(steps),
        iterations_per_second=rate,
        text_encode=_spent("encode", marks, clock),
        denoise=denoise,
        decode=_spent("decode", marks, clock),
    )


def _spent(name: str, marks: list[tuple[str, Mark]], clock: Clock) -> float | None:
    begins = [mark for label, mark in marks if label == f"{name} begin"]
    ends = [mark for label, mark in marks if label == f"{name} end"]
    return sum(map(clock.seconds, begins, ends)) if begins else None


def compile_cache_use_in_worker() -> CompileCache | None:
    """What inductor's cache, or a package of compile=aot, gave in this process so far; None: nothing was compiled."""
    from torch._dynamo.utils import counters

    found, packages = counters["inductor"], counters["aot_packages"]
    hits = int(found["fxgraph_cache_hit"] + packages["loaded"])
    misses = int(found["fxgraph_cache_miss"] + found["fxgraph_cache_bypass"] + packages["compiled"])
    return CompileCache(hits=hits, misses=misses) if hits or misses else None
