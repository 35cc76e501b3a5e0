"""Slicing and tiling: what the decoder is really given, and how that is proven."""

from __future__ import annotations

import copy
import json
import re

import diffusers
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.option_steps import step
from support.tiny_pipelines import SIZE, pipeline, site

from diffopt.config.resolve import compose_requests
from diffopt.errors import NoEffect, Refusal
from diffopt.models.resolve import PACKAGED
from diffopt.models.sizes import latent_factors_of_vae
from diffopt.recipe.plan import Plan, make_plan
from diffopt.schema.step import Step
from diffopt.steps.vae.decoding import seen_by_vae_step, set_vae_tile, watch_vae_step

LATENTS = SIZE // 2  # the VAE halves once
TILE = 16  # pixels: 8 latents


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def pictures(pipe, count: int = 2, size: int = SIZE) -> np.ndarray:
    noise = torch.Generator("cpu").manual_seed(7)
    prompts = ["a fox"] * count
    return pipe(prompts, num_inference_steps=2, height=size, width=size, generator=noise, output_type="np").images


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return pictures(pipeline())


def tiling(**changes) -> Step:
    return step("vae", "tiling", **{"tile": TILE, **changes})


def test_slicing_decodes_picture_by_picture_and_changes_nothing(reference):
    pipe, chosen = pipeline(), step("vae", "slicing")
    chosen.apply(pipe, site())
    assert np.abs(pictures(pipe) - reference).max() <= 1e-4
    numbers = chosen.verify(pipe, site()).numbers
    assert (numbers["decoder_calls"], numbers["pictures"], numbers["pictures_at_once"]) == (2, 2, 1)
    assert (numbers["tile_height"], numbers["latent_height"]) == (LATENTS, LATENTS)


def test_tiling_decodes_square_by_square_to_the_same_size(reference):
    pipe, chosen = pipeline(), tiling()
    chosen.apply(pipe, site())
    drawn = pictures(pipe)
    assert drawn.shape == reference.shape
    corner = np.abs(drawn - reference)[:, : TILE // 4, : TILE // 4]
    assert corner.mean() < 0.1  # each square is normalized by itself
    numbers = chosen.verify(pipe, site()).numbers
    assert numbers["decoder_calls"] == 9  # 8 latents wide, 6 to the next: 3 x 3 of them
    assert (numbers["tile_height"], numbers["tile_width"], numbers["pictures_at_once"]) == (8, 8, 2)


@pytest.mark.parametrize(("overlap", "calls"), [(0.0, 4), (0.25, 9), (0.5, 16)])
def test_more_overlap_means_more_squares(overlap, calls, reference):
    pipe, chosen = pipeline(), tiling(overlap=overlap)
    chosen.apply(pipe, site())
    assert pictures(pipe).shape == reference.shape
    assert chosen.verify(pipe, site()).numbers["decoder_calls"] == calls


def test_a_copied_pipeline_decodes_with_its_own_vae_and_notes_it_for_itself(reference):
    pipe, chosen = pipeline(), step("vae", "slicing")
    chosen.apply(pipe, site())
    other = copy.deepcopy(pipe)
    with torch.no_grad():
        for weight in pipe.vae.parameters():
            weight.zero_()
    assert np.abs(pictures(other) - reference).max() <= 1e-4
    assert chosen.verify(other, site()).numbers["decoder_calls"] == 2
    assert seen_by_vae_step(pipe.vae).calls == 0


def test_both_divide_by_both():
    pipe, chosen = pipeline(), step("vae", "slicing_tiling", tile=TILE)
    chosen.apply(pipe, site())
    pictures(pipe)
    effect = chosen.verify(pipe, site())
    assert (effect.numbers["decoder_calls"], effect.numbers["pictures_at_once"]) == (18, 1)
    assert "18 decoder calls for 2 pictures" in effect.summary
    assert "idle" not in effect.summary


def test_what_had_nothing_to_divide_is_told_as_long_as_something_had():
    pipe, chosen = pipeline(), step("vae", "slicing_tiling", tile=TILE)
    chosen.apply(pipe, site())
    pictures(pipe, count=1)
    assert "slicing had nothing to divide" in chosen.verify(pipe, site()).summary
    pictures(pipe, count=2, size=TILE)
    assert "tiling had nothing to divide" in chosen.verify(pipe, site()).summary


@pytest.mark.parametrize(("name", "count", "size"), [("slicing", 1, SIZE), ("tiling", 2, TILE)])
def test_nothing_to_divide_at_all_is_no_effect(name, count, size):
    pipe, chosen = pipeline(), tiling() if name == "tiling" else step("vae", name)
    chosen.apply(pipe, site())
    pictures(pipe, count=count, size=size)
    with pytest.raises(NoEffect, match=rf"^vae.{name}: nothing to divide, the decoder took all {count} pictures"):
        chosen.verify(pipe, site())


def test_the_tile_of_the_class_may_be_larger_than_the_picture():
    pipe, chosen = pipeline(), tiling(tile=None)
    chosen.apply(pipe, site())
    pictures(pipe)
    assert pipe.vae.use_tiling
    with pytest.raises(NoEffect, match="a smaller vae.tile"):
        chosen.verify(pipe, site())


@pytest.mark.parametrize("name", ["slicing", "tiling", "slicing_tiling"])
def test_a_step_that_did_nothing_is_found_out(name, monkeypatch):
    pipe, chosen = pipeline(), step("vae", name)
    monkeypatch.setattr(type(chosen), "apply", lambda self, pipe, site: None)
    chosen.apply(pipe, site())
    pictures(pipe)
    with pytest.raises(NoEffect, match="is switched off in AutoencoderKL"):
        chosen.verify(pipe, site())


def test_a_setting_that_was_undone_is_found_out():
    pipe, chosen = pipeline(), step("vae", "slicing")
    chosen.apply(pipe, site())
    pipe.vae.disable_slicing()
    pictures(pipe)
    with pytest.raises(NoEffect, match="vae.slicing: it is switched off"):
        chosen.verify(pipe, site())
    pipe.vae.use_slicing = True
    with pytest.raises(NoEffect, match="nothing to divide"):
        chosen.verify(pipe, site())


def test_a_decoder_that_was_never_called_proves_nothing():
    pipe, chosen = pipeline(), step("vae", "slicing")
    chosen.apply(pipe, site())
    with pytest.raises(NoEffect, match="never called"):
        chosen.verify(pipe, site())


@pytest.mark.parametrize("name", ["slicing", "tiling"])
def test_a_class_that_cannot_is_refused(name):
    pipe = pipeline()
    del pipe.vae.__dict__[f"use_{name}"]
    with pytest.raises(Refusal, match=rf"^vae.{name}: AutoencoderKL of toy cannot do it"):
        step("vae", name).apply(pipe, site())


def test_classes_without_slicing_and_tiling():
    """They lack the attributes, and AutoencoderMixin's methods say so."""
    vae = diffusers.AutoencoderKLTemporalDecoder(block_out_channels=(32,), down_block_types=("DownEncoderBlock2D",))
    assert not hasattr(vae, "use_slicing")
    assert not hasattr(vae, "use_tiling")
    pipe = pipeline()
    pipe.vae = vae
    with pytest.raises(Refusal, match="AutoencoderKLTemporalDecoder"):
        tiling().apply(pipe, site())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"slicing": False}, "neither slicing nor tiling is true"),
        ({"tile": 64}, "tile and overlap do nothing without tiling=true"),
        ({"overlap": 0.1}, "tile and overlap do nothing without tiling=true"),
        ({"tiling": True, "overlap": 0.6}, "less than or equal to 0.5"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, says):
    with pytest.raises(ValidationError, match=re.escape(says)):
        step("vae", "slicing", **changes)


def decoded(vae, latents: tuple[int, ...]) -> tuple[int, ...]:
    watch_vae_step(vae)
    with torch.no_grad():
        return tuple(vae.eval().decode(torch.randn(latents), return_dict=False)[0].shape)


def tiny_dc() -> diffusers.AutoencoderDC:
    """Halves twice."""
    blocks = {"block_out_channels": (8, 16, 16), "layers_per_block": (1, 1, 1)}
    parts = {f"{half}_{key}": value for half in ("encoder", "decoder") for key, value in blocks.items()}
    types = {f"{half}_block_types": "ResBlock" for half in ("encoder", "decoder")}
    return diffusers.AutoencoderDC(in_channels=3, latent_channels=4, attention_head_dim=4, **parts, **types)


def tiny_wan() -> diffusers.AutoencoderKLWan:
    """Halves three times, four frames to one."""
    return diffusers.AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def tiny_cogvideox() -> diffusers.AutoencoderKLCogVideoX:
    """Halves twice, two frames to one; its own shares, a fifth and a sixth, fit no small tile."""
    return diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        temporal_compression_ratio=2,
        sample_height=64,
        sample_width=64,
    )


@pytest.mark.parametrize("overlap", [None, 0.0, 0.25, 0.3, 0.5])
@pytest.mark.parametrize(
    ("build", "latents", "ratio"),
    [
        (tiny_dc, (1, 4, 20, 12), 4),
        (tiny_wan, (1, 4, 1, 10, 6), 8),
        (tiny_cogvideox, (1, 4, 2, 20, 12), 4),
        (lambda: pipeline().vae, (1, 4, 20, 12), 2),
    ],
    ids=["dc", "wan", "cogvideox", "kl"],
)
def test_pictures_keep_their_size_however_they_are_divided(build, latents, ratio, overlap):
    vae = build()
    whole = decoded(vae, latents)
    vae.enable_tiling()
    set_vae_tile(vae, 5 * ratio, overlap)
    assert decoded(vae, latents) == whole
    found = seen_by_vae_step(vae)
    assert found is not None
    assert found.tiled
    assert found.part_height <= 5


def test_the_customary_tiles_of_the_classes_stay_as_they_are():
    vae = diffusers.AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    vae.enable_tiling()
    set_vae_tile(vae, None, None)
    assert (vae.tile_sample_min_height, vae.tile_sample_stride_width) == (256, 192)
    kl = diffusers.AutoencoderKL(
        sample_size=512,
        block_out_channels=(8,) * 4,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    set_vae_tile(kl, None, None)
    assert (kl.tile_sample_min_size, kl.tile_latent_min_size, kl.tile_overlap_factor) == (512, 64, 0.25)


@pytest.mark.parametrize(("tile", "ratio"), [(17, 2), (2, 2)])
def test_a_tile_that_cannot_be_is_refused(tile, ratio):
    with pytest.raises(Refusal, match=rf"^vae.tile={tile}: AutoencoderKL needs a multiple of {ratio}, of {2 * ratio}"):
        set_vae_tile(pipeline().vae, tile, None)


@pytest.fixture
def graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("name", "dynamic"), [("slicing", True), pytest.param("tiling", None, marks=pytest.mark.slow)])
def test_a_compiled_decoder_is_watched_without_breaking_its_graph(graphs, name, dynamic):
    """The loops over pictures and squares are inside of the graph."""
    pipe, chosen = pipeline(), tiling() if name == "tiling" else step("vae", name)
    compiled = step("compile", "default", components=["vae_decode"], backend="eager", dynamic=dynamic)
    plain = pipeline()
    chosen.apply(plain, site())
    chosen.apply(pipe, site())
    compiled.apply(pipe, site())
    pictures(pipe)
    with torch.compiler.set_stance("fail_on_recompile"):
        drawn = pictures(pipe)
    assert np.abs(drawn - pictures(plain)).max() <= 1e-4
    assert chosen.verify(pipe, site()).numbers == chosen.verify(plain, site()).numbers
    assert compiled.verify(pipe, site()).numbers["graph_breaks"] == 0


def plan(*overrides: str) -> Plan:
    (request,) = compose_requests(["model=sdxl", "hardware=rtx4090", "precision=fp16", *overrides])
    return make_plan(request.cell)


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["vae=slicing"], "slicing divides batches, and workload.batch_size is 1"),
        (["vae=slicing", "workload.batch_size=2"], None),
        (["vae=tiling"], None),
        (["vae=tiling", "vae.tile=1024"], "tiling divides what is larger than vae.tile=1024"),
        (["vae=tiling", "vae.tile=1024", "workload.width=1280"], None),
        (["vae=tiling", "vae.tile=null"], None),  # what the class takes is not known before it is there
        (["vae=slicing_tiling"], None),
        (["vae=slicing_tiling", "workload.height=512", "workload.width=512"], "slicing divides batches"),
        (["vae=slicing_tiling", "workload.height=512", "workload.width=512", "workload.batch_size=2"], None),
    ],
)
def test_a_workload_that_has_nothing_to_divide_is_refused(words, fact):
    found = plan(*words)
    assert [problem.keys for problem in found.problems] == ([] if fact is None else [(words[0], "model=sdxl")])
    assert fact is None or fact in found.problems[0].fact


@pytest.mark.parametrize("tile", [33, 500])
def test_a_tile_that_is_no_whole_number_of_latents_is_refused_before_torch(tile):
    (problem,) = plan("vae=tiling", f"vae.tile={tile}").problems
    assert problem.fact.startswith(f"vae.tile={tile}: the VAE of sdxl needs a multiple of 8, of 16 or more (such as")


@pytest.mark.parametrize(
    "config",
    sorted(PACKAGED.glob("**/tiny/vae/config.json")),
    ids=lambda path: "-".join(path.relative_to(PACKAGED).parts[:-2]),
)
def test_the_factor_that_files_tell_is_the_one_that_tiles_are_measured_by(config):
    data = json.loads(config.read_text())
    factor, _ = latent_factors_of_vae(data)
    with torch.device("meta"):
        vae = getattr(diffusers, data["_class_name"]).from_config(data)
    set_vae_tile(vae, 2 * factor, None)
    with pytest.raises(Refusal, match=f"needs a multiple of {factor}, of {2 * factor} or more"):
        set_vae_tile(vae, 3 * factor - 1, None)


def test_so_is_one_of_a_single_latent():
    (reason,) = step("vae", "tiling", tile=16).problems(site(vae_factor=16))
    assert "vae.tile=16: the VAE of toy needs a multiple of 16, of 32 or more (such as 32)" in reason
    assert step("vae", "tiling", tile=32).problems(site(vae_factor=16)) == ()
    assert step("vae", "tiling", tile=33).problems(site()) == ()  # not known: the class will tell


def test_a_model_without_a_vae_is_refused():
    assert step("vae", "tiling").problems(site(vae=None)) == ("model toy has no VAE",)


def test_a_decoder_that_is_compiled_many_times_over_is_noted():
    words = ("vae=tiling", "compile=default")
    assert not any("holds the decoder" in note for note in plan(*words).notes)
    assert any("holds the decoder" in note for note in plan(*words, "compile.components=[vae_decode]").notes)


def test_the_share_of_activations_that_is_left():
    sizes = {"batch": 4, "height": 1024, "width": 1536}
    slicing, tiled, both = (step("vae", name) for name in ("slicing", "tiling", "slicing_tiling"))
    assert slicing.activation_share("vae", **sizes) == 1 / 4
    assert tiled.activation_share("vae", **sizes) == 1 / 6
    assert both.activation_share("vae", **sizes) == 1 / 24
    assert both.activation_share("denoiser", **sizes) == 1
    assert tiled.activation_share("vae", batch=1, height=256, width=1024) == 1 / 2
    assert step("vae", "tiling", tile=None).activation_share("vae", batch=1, height=480, width=480) == 1 / 4
