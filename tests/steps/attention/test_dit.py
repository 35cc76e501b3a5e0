"""Attention, fusion, layout and quantization on every architecture: exact where they claim it, else within a figure."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from support.option_steps import step
from support.slow import first_ones
from support.tiny_families import FAMILIES, apply, cell, drawn, error, pipelines, verify
from support.tolerances import EXACT, EXACT_OPTIONS, LOSSY_OPTIONS

from diffopt.errors import NoEffect, Refusal
from diffopt.recipe.rules import problems_of_cell
from diffopt.schema.step import Trait
from diffopt.steps.attention.processors import attention_modules

# it runs unfused without compile, as its option says
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

UNETS = {"sd15_controlnet", "sdxl", "deepfloyd_if"}
MASKS = {"sana_1600m", "pixart_sigma", "ltx_video", "hunyuan_video"}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@cache
def reference(family: str) -> np.ndarray:
    asked = cell(family)
    return drawn(pipelines(asked), asked)


# --- each option alone, on a UNet and on a transformer ---

ALONE = [*EXACT_OPTIONS, ("attention", "flex"), *LOSSY_OPTIONS]
REFUSED = {("flux_dev", "layout", "channels_last"), ("flux_dev", "attention", "vanilla")}


@pytest.mark.parametrize("family", ["sd15", "flux_dev"])
@pytest.mark.parametrize(("group", "name"), ALONE)
def test_an_option_alone_shows_its_effect_and_keeps_its_tolerance(family, group, name):
    asked, chosen = cell(family), step(group, name)
    if (family, group, name) in REFUSED:
        (reason,) = chosen.problems(asked.sites[0])
        assert "transformer" in reason.lower()
        return
    pipes = pipelines(asked)
    apply(pipes, asked, chosen)
    picture = drawn(pipes, asked)
    (effect,) = verify(pipes, asked, chosen)
    assert effect.numbers
    if (lossy := LOSSY_OPTIONS.get((group, name))) is None:
        assert error(picture, reference(family)) <= EXACT
    else:
        assert 0 < np.abs(picture - reference(family)).mean() <= lossy.mean


@pytest.mark.parametrize(("group", "name"), [pair for pair in ALONE if ("flux_dev", *pair) not in REFUSED])
def test_a_step_that_did_nothing_to_a_transformer_is_found_out(group, name):
    asked, chosen = cell("flux_dev"), step(group, name)
    with pytest.raises(NoEffect):
        verify(pipelines(asked), asked, chosen)


def test_steps_that_go_together_prove_their_effects_on_a_transformer():
    asked = cell("flux_dev")
    options = {"fuse": "qkv", "quant": "int8_weight", "attention": "math", "layout": "channels_last_vae"}
    pipes, steps = pipelines(asked), [step(group, name) for group, name in options.items()]
    apply(pipes, asked, *steps)
    assert np.abs(drawn(pipes, asked) - reference("flux_dev")).mean() < LOSSY_OPTIONS["quant", "int8_weight"].mean
    for one in steps:
        verify(pipes, asked, one)


# --- attention ---


@pytest.mark.parametrize(
    "names", [("sdpa", "flash", "math"), pytest.param(("flex",), marks=pytest.mark.slow)], ids=["torch", "flex"]
)
@pytest.mark.parametrize("family", first_ones(FAMILIES, 5))
def test_every_family_has_every_backend_of_the_cpu(family, names):
    asked = cell(family)
    pipes = pipelines(asked)
    for name in names:
        chosen = step("attention", name)
        if name == "flash" and family in MASKS:
            assert all("takes no attention mask" in chosen.problems(site)[0] for site in asked.sites)
            continue
        apply(pipes, asked, chosen)
        assert error(drawn(pipes, asked), reference(family)) <= EXACT, name
        for effect in verify(pipes, asked, chosen):
            assert f"call {chosen.backend}" in effect.summary


@pytest.mark.parametrize("family", FAMILIES)
def test_vanilla_is_exact_or_refused(family):
    asked, chosen = cell(family), step("attention", "vanilla")
    reasons = [reason for site in asked.sites for reason in chosen.problems(site)]
    if family in UNETS | {"pixart_sigma"}:
        pipes = pipelines(asked)
        apply(pipes, asked, chosen)
        assert error(drawn(pipes, asked), reference(family)) <= EXACT
        verify(pipes, asked, chosen)
    else:
        assert "attention=math computes the same" in reasons[0]
        with pytest.raises(Refusal, match="has no plain processor"):  # for models that no YAML tells about
            chosen.apply(*pipelines(asked), asked.sites[0])


def test_linear_attention_is_left_and_told():
    asked, chosen = cell("sana_1600m"), step("attention", "math")
    pipes = pipelines(asked)
    apply(pipes, asked, chosen)
    (effect,) = verify(pipes, asked, chosen)
    assert effect.numbers == {"transformer": 2, "transformer_linear": 2}
    assert "2 linear ones, which have no softmax" in effect.summary


@pytest.mark.parametrize("family", ["wan21_t2v_1_3b", "sana_1600m"])
@pytest.mark.parametrize("name", ["math", "vanilla"])
def test_a_vae_without_attention_of_diffusers_is_refused(family, name):
    asked = cell(family)
    chosen = step("attention", name, components=["vae"])
    with pytest.raises(Refusal, match=r"attention.components: vae \(Autoencoder\w+\) has no attention module"):
        chosen.apply(*pipelines(asked), asked.sites[0])


def test_prompts_that_differ_need_a_mask_where_their_padding_is_hidden(tmp_path):
    (tmp_path / "prompts.txt").write_text("a fox\na fox in the snow beside a frozen lake at night\n")
    both = cell("qwen_image", "workload.batch_size=2", f"workload.prompts_file={tmp_path}/prompts.txt")
    chosen = step("attention", "flash")
    assert "masks the padding of prompts that differ" in chosen.problems(both.sites[0])[0]
    assert not chosen.problems(cell("qwen_image", "workload.batch_size=2").sites[0])
    pipes = pipelines(both)
    chosen.apply(pipes[0], both.sites[0])
    with pytest.raises(ValueError, match="attn_mask"):  # so it would have failed
        drawn(pipes, both)


# --- fused projections ---

NOT_FUSED = {  # whose attention reads separate projections alone, or has those of a text beside
    "qwen_image": "QwenDoubleStreamAttnProcessor2_0 reads separate projections alone",
    "ltx_video": "LTXVideoAttnProcessor reads separate projections alone",
    "deepfloyd_if": "AttnAddedKVProcessor2_0 has keys and values of the text beside",
}
FUSED = {  # attention modules that are fused, in denoiser and VAE
    "sd15_controlnet": {"unet": 20, "controlnet": 8, "vae": 2},
    "sdxl": {"unet": 22, "vae": 2},
    "flux_dev": {"transformer": 4, "vae": 2},
    "flux2_klein": {"transformer": 2, "vae": 2},
    "sd35_medium": {"transformer": 3, "vae": 2},
    "sd35_large": {"transformer": 2, "vae": 2},
    "sana_1600m": {"transformer": 2, "vae": 0},
    "pixart_sigma": {"transformer": 4, "vae": 2},
    "z_image": {"transformer": 0, "vae": 2},
    "wan21_t2v_1_3b": {"transformer": 4, "vae": 0},
    "cogvideox_5b": {"transformer": 2, "vae": 0},
    "hunyuan_video": {"transformer": 1, "vae": 2},
}


def poison(pipes: list[Any]) -> int:
    """Make the separate projections unusable wherever a fused matrix stands beside them."""
    count = 0
    for part in pipes[0].components.values():
        for attention in attention_modules(part).values() if isinstance(part, torch.nn.Module) else ():
            kv = hasattr(attention, "to_kv")
            for name in ("to_k", "to_v") if kv else ("to_q", "to_k", "to_v") if hasattr(attention, "to_qkv") else ():
                getattr(attention, name).weight.data.fill_(float("nan"))
                count += 1
            if hasattr(attention, "to_added_qkv"):
                attention.add_q_proj.weight.data.fill_(float("nan"))
    return count


@pytest.mark.parametrize("family", first_ones(FUSED, 5))
def test_fused_projections_are_what_is_read(family):
    asked, chosen = cell(family), step("fuse", "qkv")
    pipes = pipelines(asked)
    apply(pipes, asked, chosen)
    assert poison(pipes)
    assert error(drawn(pipes, asked), reference(family)) <= EXACT
    apply(pipes, asked, step("attention", "math"))
    assert error(drawn(pipes, asked), reference(family)) <= EXACT
    (effect,) = verify(pipes, asked, chosen)
    assert effect.numbers == FUSED[family]


@pytest.mark.parametrize("family", NOT_FUSED)
def test_what_cannot_be_fused_is_refused_with_its_reason(family):
    asked, chosen = cell(family), step("fuse", "qkv")
    with pytest.raises(Refusal, match=f"nothing can be fused: .*{NOT_FUSED[family]}"):
        chosen.apply(pipelines(asked)[0], asked.sites[0])
    if family != "deepfloyd_if":  # its UNet's class does not tell
        assert "reads separate projections alone" in chosen.problems(asked.sites[0])[0]


def test_what_is_left_is_told():
    asked, chosen = cell("flux2_klein"), step("fuse", "qkv", components=["denoiser"])
    pipes = pipelines(asked)
    apply(pipes, asked, chosen)
    (effect,) = verify(pipes, asked, chosen)
    assert effect.summary == (
        "2 of 4 attention modules of transformer (left: Flux2ParallelSelfAttention has one matrix already) fused"
    )


def test_a_denoiser_alone_that_reads_separate_projections_is_refused_by_the_plan():
    asked = cell("z_image")
    assert step("fuse", "qkv", components=["denoiser"]).problems(asked.sites[0])
    assert not step("fuse", "qkv").problems(asked.sites[0]), "its VAE can be fused"


def test_fused_weights_are_the_ones_that_are_quantized():
    asked, fuse, quant = cell("sd35_medium"), step("fuse", "qkv"), step("quant", "int8_weight")
    pipes = pipelines(asked)
    apply(pipes, asked, fuse, quant)
    picture = drawn(pipes, asked)
    assert np.abs(picture - reference("sd35_medium")).mean() < LOSSY_OPTIONS["quant", "int8_weight"].mean
    attention = next(part for part in pipes[0].transformer.modules() if isinstance(part, Attention))
    kinds = {name: type(getattr(attention, name).weight).__name__ for name in ("to_qkv", "to_added_qkv", "to_q")}
    assert kinds == {"to_qkv": "Int8Tensor", "to_added_qkv": "Int8Tensor", "to_q": "Parameter"}


# --- layout ---

VAES = ["sd15_controlnet", "flux2_klein", "sana_1600m", "qwen_image", "wan21_t2v_1_3b"]
VAES += ["ltx_video", "cogvideox_5b", "hunyuan_video"]


@pytest.mark.parametrize("family", VAES)
def test_every_vae_takes_channels_last_also_with_3d_convolutions(family):
    asked, chosen = cell(family), step("layout", "channels_last_vae")
    pipes = pipelines(asked)
    apply(pipes, asked, chosen)
    assert error(drawn(pipes, asked), reference(family)) <= EXACT
    (effect,) = verify(pipes, asked, chosen)
    assert effect.numbers["vae"] > 20


def test_what_a_stage_lacks_is_left():
    """The first stages of the cascade have no VAE, the last one has."""
    asked, chosen = cell("deepfloyd_if"), step("layout", "channels_last")
    pipes = pipelines(asked)
    apply(pipes, asked, chosen)
    assert [set(effect.numbers) for effect in verify(pipes, asked, chosen)] == [{"unet"}, {"unet"}, {"unet", "vae"}]
    assert error(drawn(pipes, asked), reference("deepfloyd_if")) <= EXACT


def test_a_transformer_gains_nothing_from_channels_last():
    asked = cell("wan21_t2v_1_3b", "layout=channels_last")
    (problem,) = problems_of_cell(asked)
    assert "layout=channels_last_vae is for the VAE alone" in problem.text


# --- layerwise casting and the other groups ---


@pytest.mark.parametrize("family", ["sd15", "wan21_t2v_1_3b"])
def test_float8_storage_goes_with_fusion_attention_and_layout(family):
    asked = cell(family)
    layout = "channels_last" if family == "sd15" else "channels_last_vae"
    steps = [step("fuse", "qkv"), step("quant", "fp8_storage"), step("attention", "math"), step("layout", layout)]
    pipes = pipelines(asked)
    apply(pipes, asked, *steps)
    assert np.abs(drawn(pipes, asked) - reference(family)).mean() < LOSSY_OPTIONS["quant", "fp8_storage"].mean
    for one in steps:
        verify(pipes, asked, one)


@pytest.mark.parametrize("backend", ["inductor", "eager"])
def test_float8_storage_is_refused_with_what_traces_it(backend):
    words = ("compile=regional", "compile.fullgraph=false", f"compile.backend={backend}")
    asked = cell("flux_dev", "quant=fp8_storage", *words)
    (problem,) = problems_of_cell(asked)
    assert problem.keys == ("quant=fp8_storage", "compile=regional")
    assert step("quant", "fp8_storage").traits == {Trait.CASTS_STORAGE}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["deepfloyd_if", "sd35_medium", "sana_1600m", "cogvideox_5b"])
def test_our_processors_are_traced_in_one_graph(family):
    """Those that take the place of stock ones; the graph is run as it stands."""
    asked = cell(family)
    pipes, fuse = pipelines(asked), [] if family == "deepfloyd_if" else [step("fuse", "qkv")]
    apply(pipes, asked, *fuse, step("attention", "math"))
    torch._dynamo.reset()
    for pipe, of in zip(pipes, asked.sites, strict=True):
        getattr(pipe, of.model.denoiser).compile(backend="eager", fullgraph=True)
    assert error(drawn(pipes, asked), reference(family)) <= EXACT
    torch._dynamo.reset()
