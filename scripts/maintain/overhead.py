"""What diffopt itself costs: ``scripts/bench_overhead``. Medians of paired runs, because machines are noisy.

(a) speed of a measured cell against the same pipeline hand-written with plain diffusers, in alternating pairs;
(b) wall time of the verbs that need no torch; (c) planning per cell; (d) per-cell overhead of a sweep.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffopt.machine.environment import detect_environment
from diffopt.machine.files import write_json
from diffopt.machine.git import git_state
from diffopt.models.resolve import packaged_architecture
from diffopt.results.row_files import read_result

STEPS = 50
PLAIN = """
import json, statistics, sys, time
import torch
from diffusers import StableDiffusionPipeline

folder, steps, samples, warmup, prompt = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
pipe = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, safety_checker=None)
pipe.set_progress_bar_config(disable=True)
latencies = []
for _ in range(1 + warmup + samples):
    generator = [torch.Generator("cpu").manual_seed(0)]
    begin = time.perf_counter()
    pipe([prompt], num_inference_steps=steps, guidance_scale=4.0, height=64, width=64, generator=generator)
    latencies.append(time.perf_counter() - begin)
print(json.dumps(latencies[1 + warmup:]))
"""
MATRIX = (
    "model=sd15,sdxl", "hardware=a100,v100,t4,rtx3090,rtx4090", "workload.batch_size=1,4,16",
    "compile=none,max_autotune", "precision=fp16,bf16", "quant=none,fp8_dynamic",
)  # fmt: skip
SWEEP = ("attention=auto,sdpa,math", "fuse=none,qkv")
VERBS: dict[str, tuple[str, ...]] = {
    "--help": ("--help",),
    "ls": ("ls",),
    "ls attention": ("ls", "attention"),
    "show": ("show", "recipe=pytorch2"),
    "plan of one cell": ("plan", "recipe=pytorch2"),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench_overhead", description=__doc__)
    parser.add_argument("--pairs", type=int, default=7, help="alternating pairs of (a)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each verb in (b) and of the plans in (c)")
    parser.add_argument("--matrix", nargs="+", default=SWEEP, help="the sweep of (d), as words of `diffopt run -m`")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # more threads on tiny tensors measure the scheduler of the host
    found: dict[str, Any] = {"environment": detect_environment("cpu", git=git_state()).model_dump(mode="json")}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        found["speed"] = speed(options.pairs)
        found["verbs_s"] = {name: statistics.median(times(words, options.repeats)) for name, words in VERBS.items()}
        found["planning"] = planning(options.repeats)
        found["sweep"] = sweep(options.matrix)
    text = json.dumps(found, indent=2)
    print(text)
    if options.output:
        write_json(options.output, found)


def speed(pairs: int) -> dict[str, Any]:
    """(a) Iterations per second, diffopt over plain diffusers, pair by pair; whole calls, prompt to picture."""
    ours: list[float] = []
    plain: list[float] = []
    sides = [(ours, _ours), (plain, _plain)]
    for index in range(pairs):
        for rates, measure in sides if index % 2 == 0 else reversed(sides):
            rates.append(STEPS / statistics.median(measure(index)))
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    return {
        "steps": STEPS,
        "diffopt_iterations_per_second": ours,
        "plain_iterations_per_second": plain,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
    }


def _ours(index: int) -> Sequence[float]:
    study = f"./speed{index}"
    words = (f"workload.steps={STEPS}", "workload.prompt=castle", "measure=standard", f"study={study}")
    fixed = ("measure.samples=10", "measure.max_samples=10", "measure.seconds=0", "measure.warmup=2")
    diffopt("run", *words, *fixed, "measure.max_variation=10")  # its median is compared all the same
    (path,) = Path(study).glob("cells/*/*/result.json")
    latency = read_result(path).metrics.latency_s
    assert latency is not None
    return latency.samples


def _plain(index: int) -> Sequence[float]:
    words = [str(packaged_architecture("tiny")), str(STEPS), "10", "2", "castle"]
    done = subprocess.run([sys.executable, "-c", PLAIN, *words], capture_output=True, text=True, check=True)
    samples: list[float] = json.loads(done.stdout.splitlines()[-1])
    return samples


def times(words: Sequence[str], repeats: int) -> list[float]:
    """(b) Wall time of whole commands in seconds, after one that is not counted."""
    found = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        diffopt(*words)
        found.append(time.perf_counter() - begin)
    return found[1:]


def planning(repeats: int) -> dict[str, float]:
    """(c) A plan of 240 cells, and what each cell beyond the first costs."""
    one = statistics.median(times(("plan", "model=sd15", "hardware=a100"), repeats))
    many = statistics.median(times(("plan", "-m", *MATRIX), max(1, repeats // 2)))
    return {"cells": 240, "seconds": many, "ms_per_cell": 1000 * (many - one) / 239}


def sweep(matrix: Sequence[str]) -> dict[str, float]:
    """(d) Wall time of a sweep beyond what its pipelines spend loading and running, per cell.

    Most of it is a fresh Python importing torch and diffusers, which is the price of a process per cell.
    """
    words = (*matrix, "measure=quick", "study=./sweep")
    begin = time.perf_counter()
    diffopt("run", "-m", *words)
    wall = time.perf_counter() - begin
    metrics = [read_result(path).metrics for path in Path("sweep").glob("cells/*/*/result.json")]
    own = sum(
        (m.load_s or 0) + (m.first_call_s or 0) + (m.warmup_s or 0) + sum(m.latency_s.samples if m.latency_s else ())
        for m in metrics
    )
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, diffusers; diffusers.StableDiffusionPipeline"], check=True)
    imports = time.perf_counter() - begin
    begin = time.perf_counter()
    diffopt("run", "-m", *words)
    again = time.perf_counter() - begin
    return {
        "cells": len(metrics),
        "overhead_s_per_cell": (wall - own) / len(metrics),
        "of_which_imports_s": imports,
        "again_s": again,
    }


def diffopt(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "diffopt", *words], capture_output=True, check=True)


if __name__ == "__main__":
    main()
