"""What comes out: pictures as PNG, videos as frames, GIF and MP4, with what made them; videos on the contact sheet."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.rows import ENVIRONMENT, a_result

from diffopt.config.resolve import compose_requests
from diffopt.machine.packages import unmet_packages
from diffopt.pipeline import outputs
from diffopt.pipeline.outputs import MP4_PACKAGES, UNKNOWN_FPS, is_constant_picture, save_pictures
from diffopt.results.frames import lossless_pictures
from diffopt.results.result import Artifacts
from diffopt.results.sheet import GAP, SIDE, contact_sheet
from diffopt.results.study import Study
from diffopt.run.row import prepare_folder_for_run


@pytest.fixture(autouse=True)
def without_mp4(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the tests but one: its encoder is a program that takes a second to start."""
    if "mp4" not in request.node.name:
        monkeypatch.setattr(outputs, "unmet_packages", lambda packages: packages)


def frames(count: int) -> list[Image.Image]:
    """A soft blob that moves to the right."""
    y, x = np.mgrid[0:32, 0:48]
    blobs = [np.exp(-((x - 4 * i) ** 2 + (y - 16) ** 2) / 60) for i in range(count)]
    return [Image.fromarray((np.stack([b, 1 - b, b / 2], axis=-1) * 255).astype(np.uint8)) for b in blobs]


def as_array(video: list[Image.Image]) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(frame, np.float32) / 255 for frame in video])


def read(path: Path) -> tuple[list[np.ndarray[Any, Any]], list[int], dict[str, Any]]:
    """Frames, milliseconds of each, and the metadata."""
    shown, durations = [], []
    with Image.open(path) as opened:
        about = dict(opened.info)
        for index in range(opened.n_frames):
            opened.seek(index)
            shown.append(np.asarray(opened.convert("RGB"), int))
            durations.append(opened.info["duration"])
    return shown, durations, about


def test_pictures_are_exact_and_say_what_made_them(tmp_path: Path) -> None:
    pictures = [Image.effect_noise((9, 7), 60).convert("RGB"), Image.effect_noise((9, 7), 60)]
    assert save_pictures(pictures, tmp_path, "abc", (7, 8)) == ("0.png", "1.png")
    for index, picture in enumerate(pictures):
        with Image.open(tmp_path / f"{index}.png") as saved:
            assert saved.info == {"diffopt:cell_id": "abc", "diffopt:seed": str(7 + index)}
            assert (saved.mode, saved.tobytes()) == (picture.mode, picture.tobytes())


@pytest.mark.parametrize("form", [list, as_array])
def test_videos_are_animated_and_say_what_made_them(tmp_path: Path, form: Any) -> None:
    videos = [frames(9), frames(9)[::-1]]
    assert save_pictures([form(video) for video in videos], tmp_path, "abc", (7, 8), fps=10) == ("0.gif", "1.gif")
    for index, video in enumerate(videos):
        shown, durations, about = read(tmp_path / f"{index}.gif")
        assert durations == [100] * 9
        assert about["loop"] == 0, "for ever"
        assert about["comment"] == f"diffopt:cell_id=abc diffopt:seed={7 + index}".encode()
        for frame, original in zip(shown, video, strict=True):
            assert np.abs(frame - np.asarray(original, int)).mean() < 4


@pytest.mark.parametrize("form", [list, as_array])
def test_no_frame_of_a_video_loses_anything(tmp_path: Path, form: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 20, 28, 3), np.uint8)  # more colours than a GIF has
    noise[5] = noise[4]  # a frame that stands still is a frame
    video = [Image.fromarray(frame) for frame in noise]
    (name,) = save_pictures([form(video)], tmp_path, "abc", [7], fps=10)
    kept = lossless_pictures(tmp_path, name)
    assert [path.relative_to(tmp_path).as_posix() for path in kept] == [f"0/{i:04d}.png" for i in range(12)]
    for index, path in enumerate(kept):
        with Image.open(path) as frame:
            assert frame.info == {"diffopt:cell_id": "abc", "diffopt:seed": "7", "diffopt:frame": str(index)}
            assert np.array_equal(np.asarray(frame), noise[index])
    assert not np.array_equal(read(tmp_path / name)[0][0], noise[0]), "which the preview does lose"
    assert not (tmp_path / "0.mp4").exists(), "its packages are not here"


def test_a_picture_is_its_own_and_an_older_video_has_no_frames(tmp_path: Path) -> None:
    assert lossless_pictures(tmp_path, "0.png") == [tmp_path / "0.png"]
    assert lossless_pictures(tmp_path, "0.gif") == []


@pytest.mark.skipif(bool(unmet_packages(MP4_PACKAGES)), reason="the extra [video] is not installed")
def test_an_mp4_has_all_frames_at_their_speed(tmp_path: Path) -> None:
    import imageio_ffmpeg

    video = frames(9)
    assert save_pictures([video], tmp_path, "abc", [7], fps=16) == ("0.gif",)
    ffmpeg = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-i",
        str(tmp_path / "0.mp4"),
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    said = subprocess.run(ffmpeg, capture_output=True, check=True)
    shown = np.frombuffer(said.stdout, np.uint8).reshape(9, 32, 48, 3)
    for frame, original in zip(shown, video, strict=True):
        assert np.abs(frame.astype(int) - np.asarray(original, int)).mean() < 8
    assert b"16 fps" in said.stderr
    assert b"diffopt:cell_id=abc diffopt:seed=7" in said.stderr


@pytest.mark.parametrize(
    ("fps", "durations"),
    [
        (8, [120, 130, 130, 120]),
        (24, [40, 40, 40, 50]),
        (25, [40] * 4),
        (60, [20] * 4),  # as fast as viewers go
        (None, [120, 130, 130, 120]),
    ],
)
def test_a_video_keeps_its_length_as_far_as_centiseconds_go(
    tmp_path: Path, fps: int | None, durations: list[int]
) -> None:
    assert UNKNOWN_FPS == 8
    save_pictures([frames(4)], tmp_path, "abc", [0], fps=fps)
    assert read(tmp_path / "0.gif")[1] == durations


def test_a_long_video_does_not_drift(tmp_path: Path) -> None:
    save_pictures([frames(97)], tmp_path, "abc", [0], fps=24)
    assert abs(sum(read(tmp_path / "0.gif")[1]) - 97 / 24 * 1000) <= 5


def test_what_is_not_a_number_is_black(tmp_path: Path) -> None:
    video = as_array(frames(3))
    video[1] = np.nan
    video[2] = 7.0
    save_pictures([video], tmp_path, "abc", [0], fps=5)
    shown, _, _ = read(tmp_path / "0.gif")
    assert shown[0].max() > 200
    assert not shown[1].any()
    assert (shown[2] == 255).all()


def test_what_is_constant() -> None:
    black, grey = Image.new("RGB", (8, 8)), Image.new("L", (8, 8), 90)
    spot = Image.new("RGB", (8, 8))
    spot.putpixel((3, 3), (0, 0, 1))
    assert is_constant_picture(black)
    assert is_constant_picture(grey)
    assert not is_constant_picture(spot)
    assert is_constant_picture([black, black])
    assert is_constant_picture([black, grey]), "each frame is of one colour"
    assert not is_constant_picture([black, spot])
    assert is_constant_picture(np.zeros((2, 8, 8, 3)))
    assert is_constant_picture(np.full((2, 8, 8, 3), np.nan))
    assert not is_constant_picture(as_array([black, spot]))


def test_the_contact_sheet_shows_the_middle_frame_of_a_video(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s")
    row = a_result(artifacts=Artifacts(pictures=("0.gif",)))
    folder = study.folder(row.cell_id, ENVIRONMENT.id)
    folder.mkdir(parents=True)
    video = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime", "blue", "red")]
    save_pictures([video], folder, row.cell_id, [0], fps=8)
    middle = (GAP + SIDE // 2, GAP + SIDE // 2)
    assert contact_sheet(study, [row]).getpixel(middle) == (0, 255, 0)
    shutil.rmtree(folder / "0")
    assert contact_sheet(study, [row]).getpixel(middle) == (0, 255, 0), "of a row from before frames were kept"


def test_a_row_that_is_run_again_begins_with_no_frame_of_an_earlier_try(tmp_path: Path) -> None:
    (request,) = compose_requests(["hardware=cpu"])
    save_pictures([frames(3), frames(2)], tmp_path, "abc", (0, 1))
    (tmp_path / "0.mp4").touch()
    (tmp_path / "notes").mkdir()
    prepare_folder_for_run(tmp_path, request.cell)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cell.yaml", "notes"]
