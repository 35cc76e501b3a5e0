"""The figures of the built-in model: ``scripts/evaluate_tiny WHAT --out FILE``; every pipeline is a diffopt recipe.

``guidance`` compares guidance scales on validation prompts, ``accuracy`` is the held-out check, ``optimizations``
holds optimized pipelines against fp32 eager, ``speed`` times one picture and loading.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffopt.api import load
from diffopt.config.resolve import compose_requests
from diffopt.machine.environment import detect_environment
from diffopt.machine.files import write_json
from diffopt.pipeline.build import verify_steps
from diffopt.pipeline.quality.checker import SceneVerdict, check
from diffopt.pipeline.quality.scenes import SHAPES, Scene, centred_scenes, held_out
from diffopt.recipe.plan import make_plan
from scripts.maintain.tiny.similarity import psnr, ssim

STEPS = 20
GUIDANCES = (1.5, 2.0, 3.0, 4.0, 5.0)
VARIANTS: dict[str, tuple[str, ...]] = {
    "bf16": ("precision=bf16",),
    "int8_dynamic": ("quant=int8_dynamic",),
    "int8_weight": ("quant=int8_weight",),
    "fuse": ("fuse=qkv",),
    "compile": ("compile=default",),
}
STEP_COUNTS = (8, 12, 20)
VALIDATION_SEED, CENTRED_SEED, PLACED_SEED, SPEED_SEED = 90_000, 10_000, 20_000, 30_000
BATCH = 20
PARTS = ("colour", "background", "position", "size", "shape", "all")

Pictures = list[NDArray[np.uint8]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="scripts/evaluate_tiny", description="Figures of the built-in model.")
    parser.add_argument("what", choices=("guidance", "accuracy", "optimizations", "speed"))
    parser.add_argument("--out", type=Path, required=True, help="the JSON file that is written")
    parser.add_argument("--guidance", type=float, default=None, help="classifier-free guidance; default: the model's")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of PyTorch")
    parser.add_argument("--model", type=Path, default=None, help="a folder instead of the built-in model")
    parser.add_argument("--prompts", type=_count, default=None, help="the first N of each set of prompts; default: all")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    base = ["model=tiny"] if options.model is None else ["model=local", f"model.path={options.model}"]
    measure: dict[str, Callable[[list[str], float, int | None], dict[str, Any]]] = {
        "guidance": guidances,
        "accuracy": accuracy,
        "optimizations": optimizations,
        "speed": speed,
    }
    figures = measure[options.what](base, options.guidance or _customary_guidance(), options.prompts)
    about = {"what": options.what, "environment": detect_environment("cpu").model_dump(mode="json", exclude={"git"})}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, about | figures)
    print(f"written: {options.out}", file=sys.stderr)


def generate(
    pipe: Any, scenes: Sequence[Scene], *, steps: int, guidance: float, seed: int, batch: int = BATCH
) -> Pictures:
    """One RGB picture (64, 64, 3) per scene; picture i is drawn with ``seed`` + i, whatever the batch."""
    pictures: Pictures = []
    for start in range(0, len(scenes), batch):
        part = scenes[start : start + batch]
        made = pipe(
            [scene.prompt for scene in part],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(part))],
            output_type="np",
        ).images
        pictures += list(np.rint(made * 255).astype(np.uint8))
    return pictures


def rates(pictures: Pictures, scenes: Sequence[Scene]) -> dict[str, float]:
    """Part of the pictures that are right, for each part of a verdict and for all of it."""
    return _rates([check(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)])


def _rates(verdicts: Sequence[SceneVerdict]) -> dict[str, float]:
    return {part: round(statistics.mean(getattr(v, part) for v in verdicts), 4) for part in PARTS}


def guidances(base: list[str], _: float, most: int | None) -> dict[str, Any]:
    """Rates for several guidance scales, on 60 held-out prompts that no other figure uses."""
    scenes = held_out()[1][:most]
    pipe = load(overrides=base)
    found = {
        str(scale): rates(generate(pipe, scenes, steps=STEPS, guidance=scale, seed=VALIDATION_SEED), scenes)
        for scale in GUIDANCES
    }
    return {"steps": STEPS, "prompts": len(scenes), "rates": _shown(found)}


def accuracy(base: list[str], scale: float, most: int | None) -> dict[str, Any]:
    """The held-out check: 192 centred prompts with fresh seeds, and 100 prompts whose scenes training never saw."""
    placed, _ = held_out()
    pipe = load(overrides=base)
    sets: dict[str, Any] = {}
    verdicts: list[tuple[Scene, SceneVerdict]] = []
    for name, scenes, seed in (
        ("centred", centred_scenes()[:most], CENTRED_SEED),
        ("placed", placed[:most], PLACED_SEED),
    ):
        pictures = generate(pipe, scenes, steps=STEPS, guidance=scale, seed=seed)
        judged = [(scene, check(picture, scene)) for picture, scene in zip(pictures, scenes, strict=True)]
        sets[name] = {"prompts": len(scenes), **_rates([verdict for _, verdict in judged])}
        verdicts += judged
    sets["together"] = {"prompts": len(verdicts), **_rates([verdict for _, verdict in verdicts])}
    judged_by_shape = {shape: [v.shape for scene, v in verdicts if scene.shape == shape] for shape in SHAPES}
    by_shape = {shape: round(statistics.mean(right), 4) for shape, right in judged_by_shape.items() if right}
    wrong = [scene.prompt for scene, verdict in verdicts if not verdict.all]
    return {"steps": STEPS, "guidance": scale, "rates": _shown(sets), "shape": _shown(by_shape), "wrong": wrong}


def optimizations(base: list[str], scale: float, most: int | None) -> dict[str, Any]:
    """Accuracy, and likeness to fp32 eager at as many steps, of each optimization at 8, 12 and 20 steps."""
    placed, _ = held_out()
    scenes = placed[:40][:most] + centred_scenes()[::4][:40][:most]
    eager = load(overrides=base)
    reference = {steps: generate(eager, scenes, steps=steps, guidance=scale, seed=PLACED_SEED) for steps in STEP_COUNTS}
    rows: list[dict[str, Any]] = [
        {"variant": "fp32 eager", "steps": steps, **rates(reference[steps], scenes), **_likeness(pictures, None)}
        for steps, pictures in reference.items()
    ]
    proofs: dict[str, list[str]] = {}
    for name, overrides in VARIANTS.items():
        pipe = load(overrides=[*base, *overrides])
        for steps in STEP_COUNTS:
            pictures = generate(pipe, scenes, steps=steps, guidance=scale, seed=PLACED_SEED)
            likeness = _likeness(pictures, reference[steps])
            rows.append({"variant": name, "steps": steps, **rates(pictures, scenes), **likeness})
            print(rows[-1], file=sys.stderr)
        proofs[name] = _proofs([*base, *overrides], pipe)
    return {"guidance": scale, "prompts": len(scenes), "effects": proofs, "rows": rows}


def _proofs(overrides: list[str], pipe: Any) -> list[str]:
    """What each step of the recipe did to the pipeline, in one sentence each; NoEffect where one did nothing."""
    (request,) = compose_requests(overrides)
    return [effect.summary for effect in verify_steps(make_plan(request.cell), [pipe])]


def _likeness(pictures: Pictures, reference: Pictures | None) -> dict[str, float | None]:
    """PSNR of all pixels together, which is finite where some pictures are equal, and SSIM's mean and minimum."""
    if reference is None:
        return {"psnr": None, "ssim_mean": None, "ssim_min": None, "identical": None}
    same = [bool((a == b).all()) for a, b in zip(pictures, reference, strict=True)]
    alike = [ssim(a, b) for a, b in zip(pictures, reference, strict=True)]
    return {
        "psnr": None if all(same) else round(psnr(pictures, reference), 2),
        "ssim_mean": round(statistics.mean(alike), 5),
        "ssim_min": round(min(alike), 5),
        "identical": round(statistics.mean(same), 4),
    }


def speed(base: list[str], scale: float, _: int | None) -> dict[str, Any]:
    """Seconds for one picture of 20 steps with guidance, and for loading once everything is imported."""
    load(overrides=base)  # imports
    started = time.perf_counter()
    pipe = load(overrides=base)
    loading = time.perf_counter() - started
    samples = []
    for index in range(6):
        started = time.perf_counter()
        generate(pipe, centred_scenes()[:1], steps=STEPS, guidance=scale, seed=SPEED_SEED + index)
        samples.append(round(time.perf_counter() - started, 4))
    figures = {"load_s": round(loading, 4), "picture_s": statistics.median(samples[1:]), "samples_s": samples[1:]}
    return {"steps": STEPS, "guidance": scale, "threads": torch.get_num_threads(), **_shown(figures)}


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) == 0:
        raise argparse.ArgumentTypeError(f"{word} is no number of prompts: give 1 or more")
    return int(word)


def _customary_guidance() -> float:
    (request,) = compose_requests(["model=tiny"])
    return request.cell.recipe.model.guidance


def _shown(figures: dict[str, Any]) -> dict[str, Any]:
    for name, value in figures.items():
        print(f"{name:14s} {value}", file=sys.stderr)
    return figures


if __name__ == "__main__":
    main()
