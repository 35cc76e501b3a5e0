"""How far pictures and latents are from others, by the libraries that the metrics come from.

PSNR, SSIM and MS-SSIM: torchmetrics, of values from 0 to 1. FLIP: flip-evaluator, the authors' own, for values as a
screen shows them, at its customary 67 pixels per degree. Everything is computed in float64, where the library can: two
equal pictures have an SSIM of 1 there, and not in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
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

from diffopt.machine.files import file_that_appears_whole
from diffopt.results.drawing import LATENTS
from diffopt.results.frames import lossless_pictures
from diffopt.results.quality import Distance, MeanAndWorst

SIDE_FOR_MS_SSIM = 176  # the smallest that five scales of a window of eleven fit into
Pixels = np.ndarray[Any, np.dtype[np.float32]]  # (height, width, 3), 0 to 1


@dataclass
class _Clip:
    """The figures of one picture, or of all frames of a video, and where its worst frame differs."""

    equal: bool = True
    flips: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)  # mean squared ones
    ssims: list[float] = field(default_factory=list)
    ms_ssims: list[float] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)  # how far what changes to the next frame is from the other's
    worst_map: Pixels | None = None

    @property
    def worst_frame(self) -> int:
        return self.flips.index(max(self.flips))


def distance_of_drawings(
    folder: Path, names: Sequence[str], other_folder: Path, others: Sequence[str], *, maps: bool = False
) -> Distance:
    """The distance of the pictures in a folder to those in another, which are taken for right.

    Frame by frame, so that a long video needs no more memory than a short one.

    Args:
        maps: keep beside each picture a PNG of where it differs, ``flip-0.png``; of a video, its worst frame's.

    Raises:
        ValueError: they are not of the same number, frames and sizes.
    """
    clips = []
    for index, (mine, its) in enumerate(zip(names, others, strict=True)):
        clips.append(_compared(lossless_pictures(folder, mine), lossless_pictures(other_folder, its)))
        if maps:
            _save_map(clips[-1].worst_map, folder / name_of_map(index))
        clips[-1].worst_map = None
    latents = [_of_latents(mine, its) for mine, its in _pairs_of_latents(folder, other_folder, len(names))]
    ms_ssims = [value for clip in clips for value in clip.ms_ssims]
    changes = [math.fsum(clip.changes) / len(clip.changes) for clip in clips if clip.changes]
    return Distance(
        equal=sum(clip.equal for clip in clips),
        flip=_figure([value for clip in clips for value in clip.flips], max),
        psnr=_psnr([value for clip in clips for value in clip.errors]),
        ssim=_figure([value for clip in clips for value in clip.ssims], min),
        ms_ssim=_figure(ms_ssims, min) if ms_ssims else None,
        latents_cosine=_figure([cosine for cosine, _ in latents], min),
        latents_error=_figure([error for _, error in latents], max),
        flicker=_figure(changes, max) if changes else None,
        flip_by_picture=tuple(max(clip.flips) for clip in clips),
        worst_frames=tuple(clip.worst_frame for clip in clips),
    )


def name_of_map(index: int) -> str:
    """The file of where a picture differs."""
    return f"flip-{index}.png"


def pictures_that_are_not_finite(folder: Path, count: int) -> list[int]:
    """Indices of the pictures whose latents have a value that is no number."""
    latents = load_file(folder / LATENTS)
    return [index for index in range(count) if not bool(torch.isfinite(latents[str(index)]).all())]


def _compared(mine: Sequence[Path], its: Sequence[Path]) -> _Clip:
    found, before = _Clip(), None
    for one, other in zip(_pixels_of(mine), _pixels_of(its), strict=True):
        flip_map, mean, _ = evaluate(other, one, "LDR")
        if not found.flips or mean > max(found.flips):
            found.worst_map = np.asarray(flip_map, np.float32)
        found.flips.append(float(mean))
        found.equal = found.equal and np.array_equal(one, other)
        found.errors.append(float(np.square(one.astype(np.float64) - other).mean()))
        a, b = _batch(one), _batch(other)
        found.ssims.append(float(_first(structural_similarity_index_measure(a, b, data_range=1.0))))
        if min(one.shape[:2]) >= SIDE_FOR_MS_SSIM:
            found.ms_ssims.append(float(multiscale_structural_similarity_index_measure(a, b, data_range=1.0)))
        if before is not None:
            found.changes.append(float(np.abs((one - before[0]) - (other - before[1])).mean()))
        before = one, other
    return found


def _of_latents(latents: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """The cosine of the angle between them, and the norm of the difference over that of the reference."""
    cosine = float(torch.nn.functional.cosine_similarity(latents.flatten(), reference.flatten(), dim=0))
    norm = float(torch.linalg.vector_norm(reference))
    return cosine, float(torch.linalg.vector_norm(latents - reference)) / norm if norm else 0.0


def _figure(values: Sequence[float], worst: Callable[[Iterable[float]], float]) -> MeanAndWorst:
    return MeanAndWorst(mean=math.fsum(values) / len(values), worst=worst(values))


def _psnr(errors: Sequence[float]) -> MeanAndWorst | None:
    """Of the mean squared error of all pictures: the mean of their PSNRs is infinite where one is equal."""
    mean = math.fsum(errors) / len(errors)
    return MeanAndWorst(mean=-10 * math.log10(mean), worst=-10 * math.log10(max(errors))) if mean else None


def _save_map(flip_map: Pixels | None, path: Path) -> None:
    assert flip_map is not None, "a clip has a frame"
    with file_that_appears_whole(path) as file:
        Image.fromarray(np.rint(flip_map.clip(0, 1) * 255).astype(np.uint8)).save(file, "PNG")


def _pixels_of(paths: Sequence[Path]) -> Iterator[Pixels]:
    for path in paths:
        with Image.open(path, formats=("PNG",)) as opened:
            yield np.asarray(opened.convert("RGB"), np.float32) / np.float32(255)


def _pairs_of_latents(folder: Path, other: Path, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    mine, its = load_file(folder / LATENTS), load_file(other / LATENTS)
    return [(mine[str(i)].double(), its[str(i)].double()) for i in range(count)]


def _batch(picture: Pixels) -> torch.Tensor:
    """(1, 3, height, width), float64."""
    return torch.from_numpy(picture.astype(np.float64)).permute(2, 0, 1)[None]


def _first(found: Any) -> Any:
    """torchmetrics gives the mean alone, or with a picture, where that is asked for."""
    return found[0] if isinstance(found, tuple) else found
