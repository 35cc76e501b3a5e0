"""scripts.maintain.tiny: the grammar, the checker on right and on wrong pictures, and what the built-in model draws."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffopt.models.resolve import PACKAGED
from diffopt.pipeline.quality.scenes import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES
from scripts.maintain.tiny import Scene, all_scenes, centred_scenes, check, draw, held_out, parse, read
from scripts.maintain.tiny.pictures import colours, coverage, paint
from scripts.maintain.tiny.similarity import psnr, ssim

TINY = PACKAGED / "tiny"
STAR = Scene("star", "red", "white", "top left", "small")


@pytest.fixture
def _one_thread():
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rng(seed=0):
    return np.random.default_rng(seed)


@given(st.sampled_from(all_scenes()))
def test_every_scene_is_what_its_prompt_says(scene):
    assert parse(scene.prompt) == scene


def test_prompts_read_like_sentences():
    assert STAR.prompt == "a small red star in the top left on a white background"
    assert Scene("cross", "orange", "black").prompt == "an orange cross on a black background"
    assert parse("A large pink heart in the center on a gray background").size == "large"


@pytest.mark.parametrize(
    "text",
    ["", "a star", "a red star", "a red star on a pink background", "a tiny red star on a white background",
     "a red star on a white background, oil painting"],
)  # fmt: skip
def test_other_text_is_not_of_the_grammar(text):
    with pytest.raises(ValueError, match="is not: a"):
        parse(text)


def test_the_grammar_has_the_published_size():
    assert (len(SHAPES), len(COLOURS), len(BACKGROUNDS)) == (6, 8, 4)
    assert len(set(all_scenes())) == 6 * 8 * 4 * len(POSITIONS) * len(SIZES)
    assert len(set(centred_scenes())) == 192


def test_held_out_scenes_are_apart_and_not_trained_on():
    pytest.importorskip("torch")
    from scripts.maintain.tiny.autoencoder import make_drawings

    test, validation = held_out()
    assert (len(set(test)), len(set(validation))) == (100, 60)
    assert not {*test} & {*validation}
    assert not {*test, *validation} & {*centred_scenes()}
    assert not {*test, *validation} & {*make_drawings(500, seed=0).scenes}


def test_the_checker_accepts_what_is_drawn_right():
    scenes = all_scenes()[::4]
    assert np.mean([check(draw(scene, rng(i)), scene).all for i, scene in enumerate(scenes)]) >= 0.99


@pytest.mark.parametrize(
    ("part", "word"),
    [("colour", "pink"), ("background", "brown"), ("position", "bottom right"), ("position", "center"),
     ("size", "large"), ("size", "medium"), *(("shape", shape) for shape in SHAPES if shape != STAR.shape)],
)  # fmt: skip
def test_one_wrong_part_is_found_and_only_that(part, word):
    verdict = check(draw(STAR, rng()), dataclasses.replace(STAR, **{part: word}))
    wrong = {field.name for field in dataclasses.fields(verdict) if not getattr(verdict, field.name)}
    assert wrong == {part}
    assert not verdict.all


@pytest.mark.parametrize("scene", [Scene(a, "red", "white") for a in SHAPES], ids=str)
def test_every_other_shape_is_wrong(scene):
    picture = draw(scene, rng())
    for other in set(SHAPES) - {scene.shape}:
        assert not check(picture, dataclasses.replace(scene, shape=other)).shape


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((64, 64, 3)),
        np.full((64, 64, 3), 248.0),
        rng().uniform(0, 255, (64, 64, 3)),
        np.clip(rng().normal(128, 20, (64, 64, 3)), 0, 255),
        np.kron(rng().uniform(0, 255, (8, 8, 3)), np.ones((8, 8, 1))),
    ],
    ids=["black", "white", "noise", "gray noise", "patches"],
)
def test_no_shape_is_seen_where_there_is_none(picture):
    assert read(picture).shape is None


def test_a_blunt_or_broken_shape_is_wrong():
    scene = Scene("star", "red", "white")
    pair = colours(scene, rng())
    whole = coverage("star", 32, 32, 16)
    round_ = np.maximum(whole, coverage("circle", 32, 32, 11.5))
    broken = whole * (np.arange(64)[:, None] < 34)
    doubled = np.maximum(coverage("star", 20, 32, 10), coverage("star", 44, 32, 10))
    assert check(paint(whole, *pair), scene).shape
    for mask in (round_, broken, doubled):
        assert not check(paint(mask, *pair), scene).shape


def test_a_second_thing_in_the_picture_is_wrong():
    scene = Scene("circle", "red", "white")
    picture = draw(scene, rng())
    picture[1:15, 1:15] = COLOURS["blue"]
    assert not check(picture, scene).all


def test_only_pictures_of_the_model_can_be_checked():
    with pytest.raises(ValueError, match="64, 64, 3"):
        read(np.zeros((32, 32, 3)))


def test_similarity_is_what_it_is_defined_to_be():
    a = draw(STAR, rng()).astype(float)
    assert psnr(a, a) == float("inf")
    assert psnr(np.zeros((8, 8, 3)), np.full((8, 8, 3), 255.0)) == 0
    assert psnr(np.zeros((8, 8, 3)), np.full((8, 8, 3), 25.5)) == pytest.approx(20)
    assert ssim(a, a) == pytest.approx(1)
    # flat pictures: only the term of the means is left
    c1 = (0.01 * 255) ** 2
    flat = ssim(np.full((16, 16, 3), 100.0), np.full((16, 16, 3), 120.0))
    assert flat == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1))
    noisy = a + rng().normal(0, 8, a.shape)
    assert ssim(a, a + rng().normal(0, 30, a.shape)) < ssim(a, noisy) < 1


def test_the_package_needs_no_torch():
    code = "import sys, scripts.maintain.tiny; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_folder_is_small_and_complete():
    files = [path for path in TINY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8e6
    assert not {path.suffix for path in files} - {".json", ".safetensors"}


@pytest.mark.usefixtures("_one_thread")
def test_the_built_in_model_draws_what_it_is_asked():
    """With plain diffusers, offline; unseen scenes among them."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(TINY, use_safetensors=True, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    scenes = [*held_out()[0][:6], *centred_scenes()[::32]]
    made = pipe(
        [scene.prompt for scene in scenes],
        num_inference_steps=12,
        guidance_scale=2.0,
        generator=[torch.Generator().manual_seed(i) for i in range(len(scenes))],
        output_type="np",
    ).images
    verdicts = [check(np.rint(picture * 255), scene) for picture, scene in zip(made, scenes, strict=True)]
    assert sum(v.colour and v.background and v.position for v in verdicts) >= len(scenes) - 1
    assert sum(v.all for v in verdicts) >= len(scenes) - 2
