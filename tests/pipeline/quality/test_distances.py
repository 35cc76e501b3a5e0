"""Each metric is its library's, called by hand on the same files."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flip_evaluator import evaluate
from PIL import Image
from safetensors.torch import save_file
from support.places import REPO
from torchmetrics.image import (
    MultiScaleStructuralSimilarityIndexMeasure,
    PeakSignalNoiseRatio,
    StructuralSimilarityIndexMeasure,
)

from diffopt.pipeline.quality.distances import distance_of_drawings
from diffopt.results.drawing import LATENTS

SCENE = REPO / "diffopt" / "models" / "inputs" / "scene.png"
Pixels = np.ndarray[Any, Any]


def scene(side: int = 192) -> Pixels:
    with Image.open(SCENE) as opened:
        return np.asarray(opened.convert("RGB").resize((side, side), Image.Resampling.LANCZOS))


def jpeg(picture: Pixels, quality: int) -> Pixels:
    held = io.BytesIO()
    Image.fromarray(picture).save(held, "JPEG", quality=quality)
    return np.asarray(Image.open(held))


def gamma(picture: Pixels, exponent: float) -> Pixels:
    return np.rint(255 * (picture / 255) ** exponent).astype(np.uint8)


def noisy(picture: Pixels, share: float) -> Pixels:
    drawn = 255 * share * np.random.default_rng(0).standard_normal(picture.shape)
    return np.rint((picture + drawn).clip(0, 255)).astype(np.uint8)


def drawing(folder: Path, *pictures: Pixels, latents: torch.Tensor | None = None) -> tuple[Path, list[str]]:
    """A folder of pictures, or of videos where they have a fourth dimension, with latents of ones."""
    folder.mkdir()
    names = []
    for index, picture in enumerate(pictures):
        if picture.ndim == 3:
            Image.fromarray(picture).save(folder / f"{index}.png")
            names.append(f"{index}.png")
        else:
            (folder / str(index)).mkdir()
            for number, frame in enumerate(picture):
                Image.fromarray(frame).save(folder / str(index) / f"{number:04d}.png")
            names.append(f"{index}.gif")
    values = torch.ones(len(pictures), 4) if latents is None else latents
    save_file({str(i): values[i].clone() for i in range(len(pictures))}, folder / LATENTS)
    return folder, names


def distance(
    tmp_path: Path, mine: list[Pixels], its: list[Pixels], latents: tuple[torch.Tensor | None, ...] = (None, None)
) -> Any:
    one = drawing(tmp_path / "mine", *mine, latents=latents[0])
    return distance_of_drawings(*one, *drawing(tmp_path / "its", *its, latents=latents[1]))


def batch(picture: Pixels) -> torch.Tensor:
    return torch.from_numpy(picture / 255.0).permute(2, 0, 1)[None]


def off_by_one(picture: Pixels) -> Pixels:
    drawn = np.random.default_rng(0).integers(-1, 2, picture.shape)
    return (picture.astype(int) + drawn).clip(0, 255).astype(np.uint8)


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "each value of 8 bits by one at random": off_by_one,
    "a gamma of 1.02": lambda picture: gamma(picture, 1.02),
    "JPEG at quality 90": lambda picture: jpeg(picture, 90),
    "JPEG at quality 50": lambda picture: jpeg(picture, 50),
    "a shift by one pixel": lambda picture: np.roll(picture, 1, 1),
    "noise of a hundredth": lambda picture: noisy(picture, 0.01),
    "noise of a tenth": lambda picture: noisy(picture, 0.1),
    "mirrored": lambda picture: picture[:, ::-1],
}


@pytest.mark.slow
def test_the_documents_have_the_figures_of_known_changes(tmp_path: Path) -> None:
    lines = (REPO / "docs" / "quality.md").read_text(encoding="utf-8").splitlines()
    for number, (name, change) in enumerate(CHANGES.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = distance(folder, [change(scene(512))], [scene(512)])
        figures = f"{found.flip.mean:.3f} | {found.psnr.mean:.1f} | {found.ssim.mean:.3f} | {found.ms_ssim.mean:.3f}"
        assert f"| {name} | {figures} |" in lines


@pytest.mark.parametrize("change", list(CHANGES.values())[2::2], ids=list(CHANGES)[2::2])
def test_each_metric_is_what_its_library_says_of_the_files(tmp_path: Path, change: Any) -> None:
    reference = scene()
    picture = change(reference)
    found = distance(tmp_path, [picture], [reference])
    one, other = (np.asarray(Image.open(tmp_path / name / "0.png")) for name in ("mine", "its"))
    assert found.equal == 0
    flip = evaluate((other / 255).astype(np.float32), (one / 255).astype(np.float32), "LDR")[1]
    assert found.flip.mean == found.flip.worst == found.flip_by_picture[0] == pytest.approx(flip, abs=1e-6)
    for metric, library in (
        (found.psnr, PeakSignalNoiseRatio(data_range=1.0)),
        (found.ssim, StructuralSimilarityIndexMeasure(data_range=1.0)),
        (found.ms_ssim, MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0)),
    ):
        assert metric.mean == metric.worst == pytest.approx(float(library(batch(one), batch(other))), abs=1e-5)


def test_flip_is_what_the_tool_of_its_authors_says(tmp_path: Path) -> None:
    found = distance(tmp_path, [jpeg(scene(), 50)], [scene()])
    tool = Path(sys.executable).parent / "flip"
    words = [tool, "-r", tmp_path / "its/0.png", "-t", tmp_path / "mine/0.png", "-nexm", "-nerm"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    (mean,) = (line.split(":")[1] for line in done.stdout.splitlines() if line.strip().startswith("Mean"))
    assert found.flip.mean == pytest.approx(float(mean), abs=1e-6)


def test_what_is_the_same_has_no_distance(tmp_path: Path) -> None:
    found = distance(tmp_path, [scene(64), scene(64)[::-1]], [scene(64), scene(64)[::-1]])
    assert (found.equal, found.psnr, found.ms_ssim, found.flicker) == (2, None, None, None)
    assert (found.flip.worst, found.latents_error.worst, found.flip_by_picture) == (0, 0, (0, 0))
    assert found.ssim.worst == pytest.approx(1, abs=1e-12)
    assert found.latents_cosine.worst == pytest.approx(1, abs=1e-12)


def test_the_worst_picture_is_not_lost_in_the_mean(tmp_path: Path) -> None:
    pictures = [scene(64), noisy(scene(64), 0.1), noisy(scene(64), 0.01)]
    found = distance(tmp_path, pictures, [scene(64)] * 3)
    assert found.equal == 1
    assert found.flip_by_picture[1] == found.flip.worst > 5 * found.flip_by_picture[2] > 0
    assert found.flip.mean == pytest.approx(sum(found.flip_by_picture) / 3)
    assert found.psnr.worst < found.psnr.mean < 100
    assert found.ssim.worst < found.ssim.mean < 1


def test_latents_are_compared_as_they_were_computed(tmp_path: Path) -> None:
    its = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    mine = torch.tensor([[3.0, 4.0], [0.0, 1.0]]).to(torch.bfloat16)
    found = distance(tmp_path, [scene(64)] * 2, [scene(64)] * 2, (mine, its))
    assert found.latents_cosine.model_dump() == pytest.approx({"mean": 0.5, "worst": 0})
    assert found.latents_error.model_dump() == pytest.approx({"mean": 2**0.5 / 2, "worst": 2**0.5})


def test_a_video_is_compared_frame_by_frame_and_flickers(tmp_path: Path) -> None:
    still = np.stack([scene(64)] * 4)
    flickering = np.stack([noisy(frame, 0.0) if i % 2 else gamma(frame, 1.1) for i, frame in enumerate(still)])
    darker = np.stack([gamma(frame, 1.1) for frame in still])
    found = distance(tmp_path, [flickering], [still])
    assert found.equal == 0
    assert found.flip_by_picture == (found.flip.worst,)
    assert found.flip.mean == pytest.approx(found.flip.worst / 2)  # every other frame is as it was
    assert found.flicker.mean == pytest.approx(np.abs(darker[0] / 255 - still[0] / 255).mean(), abs=1e-6)
    steady = distance_of_drawings(*drawing(tmp_path / "darker", darker), tmp_path / "its", ["0.gif"])
    assert steady.flip.mean > found.flip.mean
    assert steady.flicker.worst == 0


def test_other_pictures_than_the_references_are_no_distance(tmp_path: Path) -> None:
    one, two = drawing(tmp_path / "one", scene(64)), drawing(tmp_path / "two", scene(64), scene(64))
    with pytest.raises(ValueError, match="shorter|longer"):
        distance_of_drawings(*one, *two)


def test_a_map_shows_where_a_picture_differs(tmp_path: Path) -> None:
    changed = scene(64).copy()
    changed[:32] = 0
    mine, its = drawing(tmp_path / "mine", changed), drawing(tmp_path / "its", scene(64))
    assert distance_of_drawings(*mine, *its, maps=True).worst_frames == (0,)
    seen = np.asarray(Image.open(tmp_path / "mine" / "flip-0.png")).astype(float).sum(axis=2)
    assert seen[:24].mean() > 10 * seen[40:].mean()


def test_the_map_of_a_video_is_its_worst_frames(tmp_path: Path) -> None:
    still = np.stack([scene(64)] * 3)
    spoiled = still.copy()
    spoiled[1, :32], spoiled[2] = 0, gamma(still[2], 1.05)
    mine, its = drawing(tmp_path / "mine", spoiled), drawing(tmp_path / "its", still)
    assert distance_of_drawings(*mine, *its, maps=True).worst_frames == (1,)
    seen = np.asarray(Image.open(tmp_path / "mine" / "flip-0.png")).astype(float).sum(axis=2)
    assert seen[:24].mean() > 10 * seen[40:].mean()


@pytest.mark.parametrize(("side", "known"), [(168, False), (176, True)])
def test_ms_ssim_is_told_where_its_scales_fit(tmp_path: Path, side: int, known: bool) -> None:
    found = distance(tmp_path, [jpeg(scene(side), 90)], [scene(side)])
    assert (found.ms_ssim is not None) == known
