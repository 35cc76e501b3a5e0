"""Every step that runs on the CPU, on an SDXL shape: two encoders read by hidden states, a VAE that upcasts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.option_steps import apply, step
from support.slow import first_ones
from support.tiny_pipelines import picture, xl_pipeline, xl_site

from diffopt.errors import NoEffect

ALL = ["denoiser", "vae_decode", "text_encoders"]
EXACT = 1e-4


@pytest.fixture(autouse=True)
def fresh_torch():
    torch.set_num_threads(1)
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return picture(xl_pipeline())


@pytest.mark.parametrize(
    ("group", "name", "tolerance"),
    [
        ("precision", "fp32", EXACT),
        ("memory", "resident", EXACT),
        ("fuse", "qkv", EXACT),
        ("quant", "int8_dynamic", 0.05),
        ("quant", "int8_dynamic_vae", 0.05),
        ("quant", "int8_weight", 0.05),
        ("attention", "vanilla", EXACT),
        ("attention", "sdpa", EXACT),
        ("attention", "math", EXACT),
        ("layout", "channels_last", EXACT),
        ("scheduler", "euler", EXACT),
    ],
)
def test_a_step_keeps_the_picture_and_proves_its_effect(group, name, tolerance, reference):
    pipe, chosen = xl_pipeline(), step(group, name)
    apply(pipe, xl_site(), chosen)
    assert np.abs(picture(pipe) - reference).max() <= tolerance
    assert chosen.verify(pipe, xl_site()).numbers


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc", "pndm"])
def test_another_sampler_samples(name):
    pipe, chosen = xl_pipeline(), step("scheduler", name)
    apply(pipe, xl_site(), chosen)
    assert np.isfinite(picture(pipe)).all()
    chosen.verify(pipe, xl_site())


@pytest.mark.slow
def test_all_components_are_compiled_whole(reference):
    pipe, chosen = xl_pipeline(), step("compile", "default", backend="eager", components=ALL)
    chosen.apply(pipe, xl_site())
    for _ in range(2):
        assert np.abs(picture(pipe) - reference).max() <= EXACT
    numbers = chosen.verify(pipe, xl_site()).numbers
    parts = {"unet": 1, "vae.decode": 1, "text_encoder": 1, "text_encoder_2": 1}
    assert numbers == {"graphs": 4, "graph_breaks": 0, **parts}


@pytest.mark.slow
def test_what_compiles_goes_with_a_half_vae_and_does_not_compile_again(reference):
    pipe, here = xl_pipeline(vae_dtype=torch.float16), xl_site()
    steps = (
        step("precision", "fp32", vae="float16"),
        step("fuse", "qkv"),
        step("quant", "int8_dynamic_vae"),
        step("attention", "sdpa"),
        step("layout", "channels_last"),
        step("scheduler", "euler"),
        step("compile", "default", backend="eager", components=ALL),
    )
    apply(pipe, here, *steps)
    picture(pipe)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert np.abs(picture(pipe) - reference).max() <= 0.05
    for one in steps:
        one.verify(pipe, here)


@pytest.mark.parametrize("name", first_ones(["regional", "regions"], 1))
def test_parts_are_compiled(name, reference):
    pipe, chosen = xl_pipeline(), step("compile", name, backend="eager")
    chosen.apply(pipe, xl_site())
    assert np.abs(picture(pipe) - reference).max() <= EXACT
    assert chosen.verify(pipe, xl_site()).numbers["unet_regions"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_half_vae_decodes_in_half_whatever_the_others_compute_in(dtype, reference):
    name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    pipe, chosen = xl_pipeline(dtype, vae_dtype=torch.float16), step("precision", name, vae="float16")
    apply(pipe, xl_site(), chosen)
    weights = [p.data_ptr() for p in pipe.vae.parameters()]
    picture(pipe)
    assert chosen.verify(pipe, xl_site()).numbers["vae"] == "float16"
    assert weights == [p.data_ptr() for p in pipe.vae.parameters()], "CUDA graphs replay fixed addresses"


def test_a_vae_that_computes_in_another_dtype_is_found_out():
    pipe, chosen = xl_pipeline(vae_dtype=torch.float16), step("precision", "fp32", vae="float16")
    apply(pipe, xl_site(), chosen)
    with pytest.raises(NoEffect, match="vae.decode was not called"):
        chosen.verify(pipe, xl_site())
    pipe.vae.decoder.register_forward_hook(lambda module, given, out: out.float())
    picture(pipe)
    with pytest.raises(NoEffect, match="vae was to compute in float16, but decoded in float32"):
        chosen.verify(pipe, xl_site())


def test_a_half_vae_that_overflows_is_refused():
    (reason,) = step("precision", "bf16", vae="float16").problems(xl_site(overflows=True))
    assert reason.startswith("precision.vae=float16: ")
    assert not step("precision", "fp16").problems(xl_site(overflows=True))
