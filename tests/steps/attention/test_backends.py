"""Attention backends for UNets, plain attention, and fused projections."""

from __future__ import annotations

import sys
import types
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.attention_processor import (
    Attention,
    AttnAddedKVProcessor,
    AttnAddedKVProcessor2_0,
    AttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    SanaLinearAttnProcessor2_0,
)
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from diffusers.models.transformers.transformer_flux2 import Flux2AttnProcessor
from diffusers.models.transformers.transformer_ltx import LTXVideoAttnProcessor
from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from diffusers.models.transformers.transformer_z_image import ZSingleStreamAttnProcessor
from pydantic import ValidationError
from support.option_steps import CONF, apply, step, values
from support.tiny_pipelines import picture, pipeline, site

from diffopt.config.resolve import compose_requests
from diffopt.errors import NoEffect, Refusal, UsageError
from diffopt.models import calls
from diffopt.pipeline.build import build_pipelines
from diffopt.recipe.plan import make_plan
from diffopt.schema.step import Trait
from diffopt.steps.attention.backends import Backend
from diffopt.steps.attention.processors import dispatching_processors, fused_processors, reads_fused_projections
from diffopt.steps.attention.unet import AddedKVDispatchProcessor, DispatchAttnProcessor


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return picture(pipeline())


BACKENDS = [p.stem for p in sorted((CONF / "attention").glob("*.yaml")) if values("attention", p.stem).get("backend")]
SEPARATE = (
    LTXVideoAttnProcessor,
    QwenDoubleStreamAttnProcessor2_0,
    SanaLinearAttnProcessor2_0,
    ZSingleStreamAttnProcessor,
)
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


@pytest.mark.parametrize("only_cross", [False, True])
@pytest.mark.parametrize("stock", [AttnAddedKVProcessor, AttnAddedKVProcessor2_0])
def test_our_processor_computes_what_that_of_deepfloyd_if_does(stock, only_cross):
    torch.manual_seed(0)
    attn = Attention(
        query_dim=32,
        cross_attention_dim=32,
        heads=2,
        dim_head=16,
        added_kv_proj_dim=24,
        norm_num_groups=8,
        bias=True,
        only_cross_attention=only_cross,
        processor=stock(),
    ).eval()
    given = {"hidden_states": torch.randn(2, 32, 6, 4), "encoder_hidden_states": torch.randn(2, 7, 24)}
    with torch.no_grad():
        expected = attn(**given)
        attn.set_processor(AddedKVDispatchProcessor(AttentionBackendName.NATIVE))
        torch.testing.assert_close(attn(**given), expected, atol=1e-6, rtol=1e-5)


def test_self_attention_with_fused_projections_refuses_something_else_to_attend_to():
    attn = Attention(**CASES["self"], processor=DispatchAttnProcessor(AttentionBackendName.NATIVE)).eval()
    attn.fuse_projections()
    with pytest.raises(ValueError, match="was given something else to attend to"):
        attn(torch.randn(2, 24, 32), encoder_hidden_states=torch.randn(2, 24, 32))


def test_which_processors_read_fused_projections_is_told_by_their_code():
    """By module: what diffusers' classes do is compared with what stands in their source."""
    ours = dispatching_processors()
    told = {
        type_.__name__: reads_fused_projections(type_())
        for type_ in (*ours, *fused_processors(), *ours.values(), *SEPARATE)
    }
    assert {name for name, reads in told.items() if reads} == {
        "FusedAttnProcessor2_0",
        "FusedCogVideoXAttnProcessor2_0",
        "DispatchAttnProcessor",
        "JointDispatchProcessor",
        "CogVideoXDispatchProcessor",
        "SanaDispatchProcessor",
    }
    assert all(map(reads_fused_projections, (FluxAttnProcessor(), Flux2AttnProcessor(), WanAttnProcessor())))


def test_an_unknown_backend_is_a_mistake_and_a_missing_one_is_refused():
    with pytest.raises(ValidationError, match="backend"):
        step("attention", "sdpa", backend="warp")
    with pytest.raises(Refusal, match="flash-attn"):
        step("attention", "sdpa", backend="flash").apply(pipeline(), site())


def test_backends_are_known_by_name_without_asking_diffusers():
    assert set(get_args(Backend)) == {backend.value for backend in AttentionBackendName}


@pytest.mark.parametrize(
    ("option", "backend", "instead"),
    [("math", "_native_flash", "attention=flash"), ("sdpa", "sage", "attention=sage"), ("auto", "native", "sdpa")],
)
def test_a_backend_is_chosen_by_its_own_option_which_knows_what_it_needs(option, backend, instead):
    with pytest.raises(UsageError, match=f"attention.backend={backend}: .*{instead}"):
        compose_requests(["model=tiny", "hardware=cpu", f"attention={option}", f"attention.backend={backend}"])


def test_a_backend_of_no_option_or_of_the_chosen_one_may_be_named():
    for backend in ("native", "sage_varlen"):
        (request,) = compose_requests(["model=tiny", "hardware=cpu", "attention=sdpa", f"attention.backend={backend}"])
        assert request.cell.recipe.attention.backend == backend


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
    with pytest.raises(NoEffect, match="2 of 2 attention modules of vae use separate projections"):
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


# --- kernels from the hub ---

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def consent(name: str, **changes: Any) -> Any:
    """The option with a commit and leave to run its code."""
    hub = {**values("attention", name)["hub"], "revision": COMMIT, "trust_remote_code": True, **changes}
    return step("attention", name, hub=hub)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for the package kernels and its hub: what it was asked for; the kernel is torch's own."""
    from diffusers.models import attention_dispatch

    asked: list[dict[str, Any]] = []
    made = types.ModuleType("flash_attn")

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **given: Any) -> torch.Tensor:
        asked[-1]["calls"] = asked[-1].get("calls", 0) + 1
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        scale = given.get("softmax_scale", given.get("sm_scale"))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)

    interface = types.SimpleNamespace(_flash_attn_forward=attend, _flash_attn_backward=attend)
    made.__dict__.update(flash_attn_func=attend, sageattn=attend, flash_attn_interface=interface)

    def get_kernel(repository: str, **given: Any) -> types.ModuleType:
        asked.append({"repository": repository, **given})
        if repository.endswith("/broken"):
            raise ValueError("no build for this machine")
        return made

    package = types.ModuleType("kernels")
    package.__dict__["get_kernel"] = get_kernel
    monkeypatch.setitem(sys.modules, "kernels", package)
    monkeypatch.setattr(attention_dispatch, "is_kernels_available", lambda: True)
    monkeypatch.setattr(attention_dispatch, "is_kernels_version", lambda operation, version: True)
    for entry in attention_dispatch._HUB_KERNELS_REGISTRY.values():
        for name in ("kernel_fn", "wrapped_forward_fn", "wrapped_backward_fn"):
            monkeypatch.setattr(entry, name, None)
    return asked


HUB = [name for name in BACKENDS if values("attention", name)["hub"] is not None]


@pytest.mark.parametrize("name", HUB)
def test_a_hub_kernel_is_the_commit_that_was_named_and_is_what_computes(name, kernels, reference):
    pipe, chosen = pipeline(), consent(name)
    apply(pipe, site(), chosen)
    assert np.abs(picture(pipe) - reference).max() < 1e-4
    (asked,) = kernels
    assert asked.pop("calls") >= 8
    repository = values("attention", name)["hub"]["repository"]
    assert asked == {"repository": repository, "revision": COMMIT, "trust_remote_code": True}
    assert chosen.verify(pipe, site()).summary.endswith(f"at commit {COMMIT}")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), None),
        (("workload.batch_size=2",), None),
        (("workload.batch_size=2", "workload.prompts_file={prompts}"), "prompts that differ"),
        (("workload.guidance=2.0",), "the prompt or the negative prompt"),
        (("workload.guidance=0.5",), "the prompt or the negative prompt"),  # ZImagePipeline guides above 0, not above 1
    ],
)
def test_z_image_masks_where_its_batch_is_uneven(words, why, tmp_path):
    (tmp_path / "prompts.txt").write_text("a fox\n" + "a fox in the snow beside a frozen lake at night " * 4 + "\n")
    (request,) = compose_requests(
        ["model=z_image", "model.weights=tiny", "attention=flash", "hardware=cpu", "measure=quick"]
        + [word.format(prompts=tmp_path / "prompts.txt") for word in words]
    )
    found = make_plan(request.cell)
    assert [why in problem.fact for problem in found.problems] == ([] if why is None else [True])
    if why == "prompts that differ":  # so it would have failed
        with pytest.raises(ValueError, match="attn_mask"):
            calls.draw_pictures(
                calls.calls_of_models(build_pipelines(found), request.cell.recipe.model.stages, request.cell.workload)
            )


@pytest.mark.parametrize("name", HUB)
def test_a_hub_kernel_needs_a_commit_and_consent(name):
    unpinned, untrusted = step("attention", name).problems(site())
    assert "set attention.hub.revision to a commit of https://huggingface.co/" in unpinned
    assert "set attention.hub.trust_remote_code=true" in untrusted
    assert step("attention", name).requires().packages == ("kernels>=0.14",)
    assert consent(name).problems(site()) == ()
    for branch in ("main", "v1", COMMIT[:12]):
        with pytest.raises(ValidationError, match="revision"):
            consent(name, revision=branch)


def test_a_hub_kernel_that_cannot_be_had_is_refused(kernels):
    broken = consent("flash3_hub", repository="somebody/broken")
    with pytest.raises(Refusal, match=f"somebody/broken at {COMMIT} cannot be loaded: no build for this machine"):
        broken.apply(pipeline(), site())


def test_without_the_package_kernels_a_hub_kernel_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "kernels", None)
    with pytest.raises(Refusal, match="kernels"):
        consent("flash4").apply(pipeline(), site())
