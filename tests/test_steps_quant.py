"""Quantized Linears."""

from __future__ import annotations

import pytest
import torch
from option_steps import step
from pydantic import ValidationError
from tiny_pipelines import picture, pipeline, site
from torch import nn
from torchao.quantization import Float8Tensor, Int8Tensor

from diffopt.errors import NoEffect


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def weights(pipe) -> dict[str, torch.Tensor]:
    return {path: m.weight for path, m in pipe.unet.named_modules() if isinstance(m, nn.Linear)}


@pytest.mark.parametrize(
    ("name", "kind"), [("int8_dynamic", Int8Tensor), ("int8_weight", Int8Tensor), ("fp8_weight", Float8Tensor)]
)
def test_weights_become_the_right_tensors(name, kind):
    pipe, quant = pipeline(), step("quant", name)
    quant.apply(pipe, site())
    quantized = sum(isinstance(w, kind) for w in weights(pipe).values())
    assert quant.verify(pipe, site()).numbers == {"unet": quantized, "unet_plain": len(weights(pipe)) - quantized}
    assert quantized > 20


def test_one_scheme_is_not_taken_for_another():
    pipe = pipeline()
    step("quant", "int8_weight").apply(pipe, site())
    with pytest.raises(NoEffect):
        step("quant", "int8_dynamic").verify(pipe, site())


def test_small_odd_and_skipped_linears_stay():
    pipe = pipeline()
    pipe.unet.add_module("odd", nn.Linear(40, 64))
    pipe.unet.add_module("small", nn.Linear(16, 64))
    quant = step("quant", "int8_weight", min_features=32, skip=["time_emb", "attn1.to_q"])
    quant.apply(pipe, site())
    plain = {path for path, w in weights(pipe).items() if not isinstance(w, Int8Tensor)}
    assert plain == {p for p in weights(pipe) if p in ("odd", "small") or "time_emb" in p or "attn1.to_q" in p}
    assert quant.verify(pipe, site()).numbers["unet_plain"] == len(plain)


def test_one_linear_that_was_replaced_is_found():
    pipe, quant = pipeline(), step("quant", "int8_weight")
    quant.apply(pipe, site())
    pipe.unet.time_embedding.linear_1 = nn.Linear(32, 128)
    with pytest.raises(NoEffect, match=r"quant=int8_weight: (\d+) of"):
        quant.verify(pipe, site())


def test_nothing_to_quantize_is_an_error():
    pipe, quant = pipeline(), step("quant", "int8_weight", min_features=4096)
    quant.apply(pipe, site())
    with pytest.raises(NoEffect, match="0 of 0"):
        quant.verify(pipe, site())


@pytest.mark.parametrize("name", ["int8_dynamic", "int8_weight", "fp8_weight"])
def test_inductor_keeps_its_settings(name):
    from torch._inductor import config

    before = config.get_config_copy()
    step("quant", name).apply(pipeline(), site())
    assert config.get_config_copy() == before


def test_the_vae_can_be_quantized_too():
    pipe, quant = pipeline(), step("quant", "int8_weight", components=["denoiser", "vae"])
    quant.apply(pipe, site())
    picture(pipe)
    assert quant.verify(pipe, site()).numbers["vae"] == 8  # q, k, v, out of two attention modules


def test_projections_that_fusion_replaced_stay_and_are_not_counted():
    pipe, quant = pipeline(), step("quant", "int8_weight", components=["denoiser", "vae"])
    before = len(weights(pipe))
    step("fuse", "qkv").apply(pipe, site())
    quant.apply(pipe, site())
    picture(pipe)
    plain = {path for path, w in weights(pipe).items() if not isinstance(w, Int8Tensor)}
    own = {path.rpartition(".")[2] for path in plain if ".attn1." in path}
    cross = {path.rpartition(".")[2] for path in plain if ".attn2." in path}
    assert (own, cross) == ({"to_q", "to_k", "to_v"}, {"to_k", "to_v"})
    numbers = quant.verify(pipe, site()).numbers
    assert numbers["vae"] == 4  # to_qkv and to_out of two attention modules
    # four self-attentions have one matrix for three, four cross-attentions one for two
    assert numbers["unet"] + numbers["unet_plain"] == before - 4 * 2 - 4 * 1


def test_what_has_no_cpu_path_says_so():
    assert step("quant", "int4_weight").requires().devices == {"cuda"}
    assert step("quant", "int4_weight").requires().dtypes == {"bfloat16"}
    assert step("quant", "fp8_dynamic").requires().devices == {"cuda"}
    assert step("quant", "fp8_dynamic").requires().compute_capability == (8, 9)
    assert step("quant", "fp8_dynamic").requires().dtypes is None
    assert step("quant", "fp8_dynamic", granularity="row").requires().dtypes == {"bfloat16"}


def test_int4_takes_only_inputs_that_divide_into_groups():
    """The choice alone: packing needs CUDA."""
    from diffopt.steps.linears import _chooser

    int4 = step("quant", "int4_weight", group_size=64)
    chosen = _chooser(int4, int4.group_size, frozenset())
    assert chosen(nn.Linear(128, 48), "to_q")
    assert not chosen(nn.Linear(96, 48), "to_q")


@pytest.mark.parametrize(
    ("name", "change"), [("int4_weight", {"group_size": 48}), ("int8_weight", {"min_features": 8})]
)
def test_values_that_no_kernel_takes_are_refused(name, change):
    with pytest.raises(ValidationError):
        step("quant", name, **change)
