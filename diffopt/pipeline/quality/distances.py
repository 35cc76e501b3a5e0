"""How far pictures and latents are from others, by the libraries that the metrics come from.

PSNR, SSIM and MS-SSIM: torchmetrics, of values from 0 to 1. FLIP: flip-evaluator, the authors' own, for values as a
screen shows them, at its customary 67 pixels per degree. Everything is computed in float64, where the library can: two
equal pictures have an SSIM of 1 there, and not in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flip_evaluator import evaluate
from PIL import Image
from safetensors.torch import load_file
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from diffopt.results.drawing import LATENTS
from diffopt.results.frames import lossless_pictures
from diffopt.results.quality import Distance, MeanAndWorst

SIDE_FOR_MS_SSIM = 161  # five scales of a window of eleven
Pixels = np.ndarray[Any, np.dtype[np.float32]]  # (height, width, 3), 0 to 1


def distance_of_drawings(folder: Path, names: Sequence[str], other_folder: Path, others: Sequence[str]) -> Distance:
    """The distance of the pictures in a folder to those in another, which are taken for right.

    Raises ValueError where they are not of the same number, frames and sizes.
    """
    clips = [(_pixels_of(folder, mine), _pixels_of(other_folder, its)) for mine, its in zip(names, others, strict=True)]
    frames = [pair for mine, its in clips for pair in zip(mine, its, strict=True)]
    flips = [[flip(*pair) for pair in zip(mine, its, strict=True)] for mine, its in clips]
    errors = [float(np.square(mine.astype(np.float64) - its).mean()) for mine, its in frames]
    small = min(min(mine.shape[:2]) for mine, _ in frames) < SIDE_FOR_MS_SSIM
    latents = _pairs_of_latents(folder, other_folder, len(names))
    return Distance(
        equal=sum(all(np.array_equal(a, b) for a, b in zip(mine, its, strict=True)) for mine, its in clips),
        flip=_figure([value for values in flips for value in values], max),
        psnr=_psnr(errors),
        ssim=_figure([ssim(*pair) for pair in frames], min),
        ms_ssim=None if small else _figure([ms_ssim(*pair) for pair in frames], min),
        latents_cosine=_figure([latents_cosine(*pair) for pair in latents], min),
        latents_error=_figure([latents_error(*pair) for pair in latents], max),
        flicker=_flicker(clips),
        flip_by_picture=tuple(max(values) for values in flips),
    )


def flip(picture: Pixels, reference: Pixels) -> float:
    """Mean FLIP of a picture; 0 is the same."""
    return float(evaluate(reference, picture, "LDR", applyMagma=False)[1])


def pictures_that_are_not_finite(folder: Path, count: int) -> list[int]:
    """Indices of the pictures whose latents have a value that is no number."""
    latents = load_file(folder / LATENTS)
    return [index for index in range(count) if not bool(torch.isfinite(latents[str(index)]).all())]


def save_flip_maps(folder: Path, names: Sequence[str], other: Path, others: Sequence[str]) -> tuple[str, ...]:
    """Beside each picture a PNG of where it differs, ``flip-0.png``; of a video, its worst frame's."""
    found = []
    for index, (mine, its) in enumerate(zip(names, others, strict=True)):
        pairs = list(zip(_pixels_of(folder, mine), _pixels_of(other, its), strict=True))
        worst = max(pairs, key=lambda pair: flip(*pair)) if len(pairs) > 1 else pairs[0]
        found.append(f"flip-{index}.png")
        Image.fromarray(np.rint(flip_map(*worst).clip(0, 1) * 255).astype(np.uint8)).save(folder / found[-1])
    return tuple(found)


def flip_map(picture: Pixels, reference: Pixels) -> Pixels:
    """The authors' picture of where a picture differs, (height, width, 3) from 0 to 1."""
    return np.asarray(evaluate(reference, picture, "LDR")[0], np.float32)


def ssim(picture: Pixels, reference: Pixels) -> float:
    """Structural similarity; 1 is the same."""
    found: Any = structural_similarity_index_measure(_batch(picture), _batch(reference), data_range=1.0)
    return float(found)


def ms_ssim(picture: Pixels, reference: Pixels) -> float:
    """Structural similarity at five scales; 1 is the same."""
    found = multiscale_structural_similarity_index_measure(_batch(picture), _batch(reference), data_range=1.0)
    return float(found)


def latents_cosine(latents: torch.Tensor, reference: torch.Tensor) -> float:
    """Cosine of the angle between them; 1 is the same direction."""
    return float(torch.nn.functional.cosine_similarity(latents.flatten(), reference.flatten(), dim=0))


def latents_error(latents: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference over that of the reference; 0 is the same."""
    norm = float(torch.linalg.vector_norm(reference))
    return float(torch.linalg.vector_norm(latents - reference)) / norm if norm else 0.0


def _figure(values: Sequence[float], worst: Callable[[Iterable[float]], float]) -> MeanAndWorst:
    return MeanAndWorst(mean=math.fsum(values) / len(values), worst=worst(values))


def _psnr(errors: Sequence[float]) -> MeanAndWorst | None:
    """Of the mean squared error of all pictures: the mean of their PSNRs is infinite where one is equal."""
    mean = math.fsum(errors) / len(errors)
    return MeanAndWorst(mean=-10 * math.log10(mean), worst=-10 * math.log10(max(errors))) if mean else None


def _flicker(clips: Sequence[tuple[list[Pixels], list[Pixels]]]) -> MeanAndWorst | None:
    """Of each video: how far what changes from frame to frame is from what changes there in the reference."""
    values = [
        float(np.abs(np.diff(np.stack(mine), axis=0) - np.diff(np.stack(its), axis=0)).mean())
        for mine, its in clips
        if len(mine) > 1
    ]
    return _figure(values, max) if values else None


def _pixels_of(folder: Path, name: str) -> list[Pixels]:
    found = []
    for path in lossless_pictures(folder, name):
        with Image.open(path) as opened:
            found.append(np.asarray(opened.convert("RGB"), np.float32) / np.float32(255))
    return found


def _pairs_of_latents(folder: Path, other: Path, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    mine, its = load_file(folder / LATENTS), load_file(other / LATENTS)
    return [(mine[str(i)].double(), its[str(i)].double()) for i in range(count)]


def _batch(picture: Pixels) -> torch.Tensor:
    """(1, 3, height, width), float64."""
    return torch.from_numpy(picture.astype(np.float64)).permute(2, 0, 1)[None]
