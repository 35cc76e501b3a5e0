"""Attention backends for UNets, plain attention, and fused projections."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, IPAdapterAttnProcessor2_0
from option_steps import CONF, apply, step, values
from pydantic import ValidationError
from tiny_pipelines import picture, pipeline, site

from diffopt.errors import NoEffect, Refusal
from diffopt.step import Trait
from diffopt.steps.unet_attention import DispatchAttnProcessor


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return picture(pipeline())


BACKENDS = [p.stem for p in sorted((CONF / "attention").glob("*.yaml")) if values("attention", p.stem).get("backend")]
CASES = {
    "self": {"query_dim": 32, "heads": 2, "dim_head": 16},
    "cross": {"query_dim": 32, "cross_attention_dim": 24, "heads": 2, "dim_head": 16},
    "cross, layer norm": {"query_dim": 32, "cross_attention_dim": 24, "cross_attention_norm": "layer_norm"},
    "cross, group norm": {
        "query_dim": 32,
        "cross_attention_dim": 24,
        "cross_attention_norm": "group_norm",
        "cross_attention_norm_num_groups": 4,
    },
    "picture of a VAE": {
        "query_dim": 32,
        "heads": 1,
        "dim_head": 32,
        "norm_num_groups": 8,
        "bias": True,
        "residual_connection": True,
        "rescale_output_factor": 2.0,
    },
    "spatial norm": {"query_dim": 32, "heads": 1, "dim_head": 32, "spatial_norm_dim": 4, "residual_connection": True},
    "q and k norms": {"query_dim": 32, "heads": 2, "dim_head": 16, "qk_norm": "layer_norm"},
}


def inputs(case: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    if case == "picture of a VAE":
        return {"hidden_states": torch.randn(2, 32, 6, 4)}
    if case == "spatial norm":
        return {"hidden_states": torch.randn(2, 32, 6, 4), "temb": torch.randn(2, 4, 6, 4)}
    if case.startswith("cross"):
        return {"hidden_states": torch.randn(2, 24, 32), "encoder_hidden_states": torch.randn(2, 7, 24)}
    return {"hidden_states": torch.randn(2, 24, 32)}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_our_processor_computes_what_the_stock_one_does(case, fused):
    torch.manual_seed(0)
    attn = Attention(**CASES[case], processor=AttnProcessor2_0()).eval()
    given = inputs(case)
    with torch.no_grad():
        expected = attn(**given)
        if fused:
            attn.fuse_projections()
            for name in ("to_k", "to_v") if attn.is_cross_attention else ("to_q", "to_k", "to_v"):
                getattr(attn, name).weight.fill_(float("nan"))  # the fused matrix must be the one that is read
        attn.set_processor(DispatchAttnProcessor(AttentionBackendName.NATIVE))
        torch.testing.assert_close(attn(**given), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("queries", [1, 24])
def test_our_processor_masks_as_the_stock_one_does(queries):
    torch.manual_seed(0)
    attn = Attention(**CASES["cross"], processor=AttnProcessor2_0()).eval()
    mask = torch.zeros(2 if queries == 1 else 4, queries, 7)
    mask[..., 4:] = -10000.0
    given = {**inputs("cross"), "attention_mask": mask}
    with torch.no_grad():
        expected = attn(**given)
        unmasked = attn(**inputs("cross"))
        attn.set_processor(DispatchAttnProcessor(AttentionBackendName.NATIVE))
        torch.testing.assert_close(attn(**given), expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(expected, unmasked)


def test_our_processor_can_be_exported():
    attn = Attention(**CASES["cross"], processor=DispatchAttnProcessor(AttentionBackendName.NATIVE)).eval()
    given = inputs("cross")
    program = torch.export.export(attn, (), given)
    torch.testing.assert_close(program.module()(**given), attn(**given))


@pytest.mark.parametrize("name", BACKENDS)
def test_backends_go_by_diffusers_names(name):
    backend = AttentionBackendName(values("attention", name)["backend"])
    assert backend in _AttentionBackendRegistry.list_backends()


def test_the_backend_is_that_of_the_component_alone():
    before = _AttentionBackendRegistry.get_active_backend()
    pipe, chosen = pipeline(), step("attention", "math")
    chosen.apply(pipe, site())
    assert _AttentionBackendRegistry.get_active_backend() == before
    assert {p._attention_backend for p in pipe.unet.attn_processors.values()} == {AttentionBackendName._NATIVE_MATH}
    assert {type(p) for p in pipe.vae.attn_processors.values()} == {AttnProcessor2_0}
    assert chosen.verify(pipe, site()).numbers == {"unet": 8}


def test_the_vae_takes_a_backend_too(reference):
    pipe, chosen = pipeline(), step("attention", "math", components=["denoiser", "vae"])
    chosen.apply(pipe, site())
    assert np.abs(picture(pipe) - reference).max() < 1e-4
    assert chosen.verify(pipe, site()).numbers == {"unet": 8, "vae": 2}


def test_diffusers_own_switch_reaches_our_processor_and_is_found_out():
    pipe, chosen = pipeline(), step("attention", "math")
    chosen.apply(pipe, site())
    before = _AttentionBackendRegistry.get_active_backend()[0]
    pipe.unet.set_attention_backend("_native_flash")
    _AttentionBackendRegistry.set_active_backend(before)
    with pytest.raises(NoEffect, match="8 of 8 attention modules of unet do not use it"):
        chosen.verify(pipe, site())


def test_one_stock_processor_is_found():
    pipe, chosen = pipeline(), step("attention", "sdpa")
    chosen.apply(pipe, site())
    next(m for m in pipe.unet.modules() if isinstance(m, Attention)).set_processor(AttnProcessor2_0())
    with pytest.raises(NoEffect, match="1 of 8"):
        chosen.verify(pipe, site())


def test_a_kernel_that_is_missing_raises_instead_of_falling_back():
    pipe = pipeline()
    step("attention", "efficient").apply(pipe, site())
    with pytest.raises(RuntimeError):
        picture(pipe)


@pytest.mark.parametrize(("change", "words"), [({"backend": "warp"}, "warp"), ({"backend": "flash"}, "flash-attn")])
def test_an_unknown_or_missing_backend_is_refused(change, words):
    with pytest.raises(Refusal, match=words):
        step("attention", "sdpa", **change).apply(pipeline(), site())


def test_a_processor_that_computes_something_else_is_refused():
    pipe = pipeline()
    next(m for m in pipe.unet.modules() if isinstance(m, Attention)).set_processor(IPAdapterAttnProcessor2_0(32, 32))
    with pytest.raises(Refusal, match="IPAdapterAttnProcessor2_0"):
        step("attention", "sdpa").apply(pipe, site())


def test_what_a_backend_needs_comes_from_its_yaml():
    needs = step("attention", "flash3").requires()
    assert needs.devices == {"cuda"}
    assert needs.exact_compute_capabilities == {(8, 0), (8, 6), (8, 9), (9, 0)}
    assert "hopper" in needs.install
    assert needs.dtypes == {"float16", "bfloat16"}
    assert step("attention", "xformers").requires().packages == ("xformers>=0.0.29",)
    assert step("attention", "flash").requires().devices == {"cuda", "cpu"}


@pytest.mark.parametrize("attention", ["auto", "sdpa", "math"])
def test_fused_projections_are_read(attention, reference):
    pipe, fuse = pipeline(), step("fuse", "qkv")
    steps = [fuse] if attention == "auto" else [fuse, step("attention", attention)]
    apply(pipe, site(), *steps)
    for module in pipe.unet.modules():
        if isinstance(module, Attention):
            module.to_k.weight.data.fill_(float("nan"))
    assert np.abs(picture(pipe) - reference).max() < 1e-4
    assert fuse.verify(pipe, site()).numbers == {"unet": 8, "vae": 2}


def test_a_stock_processor_undoes_the_fusion_and_is_found_out():
    pipe, fuse = pipeline(), step("fuse", "qkv")
    fuse.apply(pipe, site())
    pipe.vae.set_attn_processor(AttnProcessor2_0())
    with pytest.raises(NoEffect, match="none of the 2 attention modules of vae"):
        fuse.verify(pipe, site())
    assert fuse.traits == {Trait.FUSES_QKV}
    assert step("attention", "vanilla").traits == {Trait.STOCK_PROCESSOR}


@pytest.mark.parametrize(("group", "name"), [("fuse", "qkv"), ("attention", "math"), ("attention", "vanilla")])
def test_text_encoders_have_no_attention_of_diffusers(group, name):
    with pytest.raises(ValidationError, match="components"):
        step(group, name, components=["text_encoders"])


SD15, SDXL = {"head_sizes": (40, 80, 160), "vae_head_size": 512}, {"head_sizes": (64,), "vae_head_size": 512}


@pytest.mark.parametrize(
    ("name", "model", "capability", "fits"),
    [
        ("flash", SD15, (8, 0), True),
        ("flash2", SD15, (8, 0), True),
        ("sage", SD15, (8, 9), False),
        ("sage", SDXL, (8, 9), True),
        ("cudnn", SD15, (8, 0), False),
        ("cudnn", SD15, (9, 0), True),  # it depends on cuDNN: tried, not refused
        ("cudnn", SD15, None, True),
        ("cudnn", SDXL, (8, 0), True),
        ("math", SD15, (8, 0), True),
    ],
)
def test_heads_that_a_kernel_cannot_take_are_refused(name, model, capability, fits):
    problems = step("attention", name).problems(site(device="cuda", capability=capability, **model))
    assert (not problems) is fits
    assert fits or "the denoiser has 160" in problems[0]


@pytest.mark.parametrize("name", ["flash", "flash2", "flash3", "sage"])
def test_the_vaes_one_head_is_too_large_for_them(name):
    chosen = step("attention", name, components=["denoiser", "vae"])
    (problem,) = chosen.problems(site(device="cuda", capability=(9, 0), **SDXL))
    assert problem.endswith("the vae has 512")
    assert not chosen.problems(site(device="cuda", capability=(9, 0), head_sizes=(64,), vae_head_size=None))
    assert not chosen.problems(site(**SDXL)), "limits of kernels on CUDA say nothing about the CPU"


def test_a_backend_that_breaks_graphs_says_so():
    assert step("attention", "sage").traits == {Trait.GRAPH_BREAKS}
    assert step("attention", "flash").traits == set()
