"""Precision, placement and layout."""

from __future__ import annotations

import re
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from support.option_steps import apply, step
from support.tiny import tiny
from support.tiny_families import cell, drawn
from support.tiny_pipelines import picture, pipeline, site

from diffopt.config.resolve import compose_requests
from diffopt.errors import NoEffect, Refusal
from diffopt.models.classes import DENOISERS
from diffopt.pipeline.build import build_pipelines, verify_steps
from diffopt.pipeline.meter import Meter
from diffopt.recipe.plan import make_plan


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def tf32_flags_stay():
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


def test_auto_vae_is_wide_only_where_float16_overflows():
    fp16, bf16 = step("precision", "fp16"), step("precision", "bf16")
    half = {"default": torch.float16, "vae": torch.float16}
    assert fp16.load_kwargs(site()) == {"dtype": half}
    assert fp16.load_kwargs(site(overflows=True)) == {"dtype": {**half, "vae": torch.float32}}
    assert bf16.load_kwargs(site(overflows=True))["dtype"]["vae"] is torch.bfloat16
    assert step("precision", "fp16", vae="bfloat16").load_kwargs(site())["dtype"]["vae"] is torch.bfloat16


def test_a_model_without_vae_gets_no_dtype_for_one():
    assert step("precision", "fp16").load_kwargs(site(vae=None)) == {"dtype": {"default": torch.float16}}


def test_a_wide_vae_takes_narrow_latents():
    reference = picture(pipeline())
    pipe, fp16 = pipeline(torch.float16, vae_dtype=torch.float32), step("precision", "fp16")
    with pytest.raises(RuntimeError):
        picture(pipe)
    apply(pipe, site(overflows=True), fp16)
    assert np.abs(picture(pipe) - reference).max() < 0.02
    numbers = fp16.verify(pipe, site(overflows=True)).numbers
    assert (numbers["unet"], numbers["vae"]) == ("float16", "float32")
    assert numbers["unet_parameters"] == sum(p.numel() for p in pipe.unet.parameters())


def test_latents_of_a_wide_vae_come_in_what_the_pictures_came_in():
    pipe, fp16 = pipeline(torch.float16, vae_dtype=torch.float32), step("precision", "fp16")
    given = torch.linspace(-1, 1, 32 * 32 * 3).reshape(1, 3, 32, 32)
    plain = pipe.vae.encode(given.half().float()).latent_dist
    apply(pipe, site(overflows=True), fp16)
    for taken, dtype in ((given.half(), torch.float16), (given.half().float(), torch.float32)):
        found = pipe.vae.encode(taken).latent_dist
        assert torch.equal(found.mode(), plain.mode().to(dtype))
        noise = [torch.Generator().manual_seed(1) for _ in range(2)]
        assert torch.equal(found.sample(noise[0]), plain.sample(noise[1]).to(dtype))
        assert found.sample().dtype == dtype


WIDE = ["sd15 img2img", "flux_kontext"]
MORE_WIDE = ["sd15 inpaint", "sd15_inpaint", "sd35_medium img2img", "sd35_medium inpaint", "flux_dev img2img"]
MORE_WIDE += ["flux_dev inpaint", "qwen_image img2img", "z_image img2img", "sdxl img2img", "sdxl inpaint"]


@pytest.mark.parametrize("option", [*WIDE, *(pytest.param(one, marks=pytest.mark.slow) for one in MORE_WIDE)])
def test_pictures_are_read_by_a_vae_that_is_wider_than_the_denoiser(option):
    strength = [] if option in ("flux_kontext", "sd15_inpaint") else ["workload.strength=0.5"]
    asked = cell(option, "precision=bf16", "workload.steps=4", *strength)
    wide = cell(option, "precision=bf16", "precision.vae=float32", "workload.steps=4", *strength)
    narrow, drawn_wide = (drawn(build_pipelines(make_plan(one)), one) for one in (asked, wide))
    assert narrow.std() > 0
    assert 0 < np.abs(drawn_wide - narrow).mean() < 0.1


def test_fp32_turns_tf32_off_also_for_convolutions():
    torch.backends.cudnn.allow_tf32 = True
    pipe, fp32 = pipeline(), step("precision", "fp32")
    with pytest.raises(NoEffect, match="tf32"):
        fp32.verify(pipe, site())
    fp32.apply(pipe, site())
    picture(pipe)
    assert not torch.backends.cudnn.allow_tf32
    fp32.verify(pipe, site())


def test_tf32_turns_it_on_and_needs_ampere():
    pipe, tf32 = pipeline(), step("precision", "tf32")
    tf32.apply(pipe, site())
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    assert tf32.requires().devices == {"cuda"}
    assert tf32.requires().compute_capability == (8, 0)


def test_one_parameter_in_another_dtype_is_found():
    pipe, fp32 = pipeline(), step("precision", "fp32")
    fp32.apply(pipe, site())
    pipe.unet.conv_in.half()
    with pytest.raises(NoEffect, match="unet was to be float32, but holds .* in float16"):
        fp32.verify(pipe, site())


def test_quantized_weights_do_not_count_against_the_precision():
    pipe, fp32 = pipeline(), step("precision", "fp32")
    apply(pipe, site(), fp32, step("quant", "int8_weight"))
    picture(pipe)
    assert fp32.verify(pipe, site()).numbers["unet_parameters"] < sum(p.numel() for p in pipe.unet.parameters())


@pytest.mark.parametrize(("name", "dtype"), [("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")])
def test_each_part_is_told_the_dtype_that_it_is_loaded_in(name, dtype):
    chosen = step("precision", name)
    told = {part: chosen.dtype_of(part, site(overflows=True)) for part in ("denoiser", "text_encoders", "vae")}
    assert told == {"denoiser": dtype, "text_encoders": dtype, "vae": "float32" if name == "fp16" else dtype}


def test_tf32_is_refused_where_nothing_is_in_float32():
    tf32 = step("precision", "fp16", tf32=True)
    with pytest.raises(Refusal, match=r"^precision.tf32=true: no weight of this pipeline is in float32"):
        tf32.apply(pipeline(torch.float16), site())
    tf32.apply(pipeline(torch.float16, vae_dtype=torch.float32), site())


def test_the_classes_that_keep_layers_in_float32_are_those_of_diffusers():
    folder = Path(diffusers.__file__).parent / "models" / "transformers"
    kept = re.compile(r"^class (\w+)(?:(?!^class ).)*?^    _keep_in_fp32_modules = [\[(]", re.MULTILINE | re.DOTALL)
    found = {name for file in folder.glob("*.py") for name in kept.findall(file.read_text())}
    assert found == {name for name, known in DENOISERS.items() if known.keeps_float32}


@pytest.mark.parametrize("kept", [["time_embedding", "conv"], "time_embedding"])
def test_float32_is_allowed_only_where_the_class_keeps_it(kept):
    pipe, bf16 = pipeline(torch.bfloat16), step("precision", "bf16")
    pipe.unet._keep_in_fp32_modules = kept
    apply(pipe, site(), bf16)
    picture(pipe)
    pipe.unet.time_embedding.float()
    bf16.verify(pipe, site())
    pipe.unet.conv_in.float()
    with pytest.raises(NoEffect, match="unet was to be bfloat16, but holds .* in float32"):
        bf16.verify(pipe, site())


def test_a_tensor_elsewhere_is_found():
    pipe, resident = pipeline(), step("memory", "resident")
    resident.apply(pipe, site())
    assert resident.verify(pipe, site()).numbers["bytes"] > 4 * sum(p.numel() for p in pipe.unet.parameters())
    pipe.vae.to("meta")
    with pytest.raises(NoEffect, match="of vae are not on cpu"):
        resident.verify(pipe, site())


def test_layout_counts_only_convolutions_that_it_changes():
    pipe, layout = pipeline(), step("layout", "channels_last", components=["vae"])
    layout.apply(pipe, site())
    expected = sum(p.ndim == 4 and p.shape[-1] > 1 for p in pipe.vae.parameters())
    assert layout.verify(pipe, site()).numbers == {"vae": expected}
    assert not pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_one_convolution_in_the_old_layout_is_found():
    pipe, layout = pipeline(), step("layout", "channels_last")
    layout.apply(pipe, site())
    pipe.unet.conv_in.weight.data = pipe.unet.conv_in.weight.data.contiguous()
    with pytest.raises(NoEffect, match="^layout=channels_last: 1 of "):
        layout.verify(pipe, site())


@pytest.mark.parametrize("family", ["flux_dev", "flux_kontext", "sana_1600m"])
def test_text_encoders_that_overflow_hand_on_what_the_denoiser_reads(family):
    (request,) = compose_requests([*tiny(family), "hardware=cpu", "measure=quick", "precision=fp16"])
    plan = make_plan(request.cell)
    pipes = build_pipelines(plan)
    meter = Meter(pipes, request.cell)
    meter.call()
    assert np.asarray(meter.outputs[0]).std() > 0
    (proof,) = [effect for effect in verify_steps(plan, pipes) if effect.group == "precision"]
    assert (proof.numbers["text_encoder"], proof.numbers["transformer"]) == ("bfloat16", "float16")
