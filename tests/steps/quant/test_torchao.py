"""Quantized Linears."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.hooks.layerwise_casting import _LAYERWISE_CASTING_HOOK
from pydantic import ValidationError
from support.option_steps import apply, step, values
from support.tiny_families import cell, drawn, pipelines
from support.tiny_pipelines import picture, pipeline, site, xl_pipeline, xl_site
from torch import nn
from torchao.quantization import Float8Tensor, Int8Tensor

from diffopt.config.resolve import compose_requests
from diffopt.errors import NoEffect, Refusal
from diffopt.models.index import read_model_index
from diffopt.models.random.weights import meta_modules
from diffopt.models.resolve import PACKAGED, packaged_architecture
from diffopt.recipe.options import option_names
from diffopt.schema.record import record_identity
from diffopt.schema.step import Order, Trait
from diffopt.steps.quant.linears import _chooser, linears_replaced_by_fused


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


@pytest.mark.parametrize("name", ["int8_weight", "int8_dynamic", "fp8_weight"])
def test_inference_mode_changes_nothing_neither_while_quantizing_nor_while_drawing(name):
    outside, inside, chosen = pipeline(), pipeline(), step("quant", name)
    chosen.apply(outside, site())
    with torch.inference_mode():
        chosen.apply(inside, site())
        within = [picture(inside), picture(outside)]
    for one in (*within, picture(inside)):
        np.testing.assert_array_equal(one, picture(outside))
    chosen.verify(inside, site())


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


def test_nothing_to_quantize_is_refused():
    pipe, quant = pipeline(), step("quant", "int8_weight", min_features=4096)
    with pytest.raises(Refusal, match=r"quant=int8_weight: unet \(UNet2DConditionModel\) has no Linear that is large"):
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
    assert step("quant", "fp8_dynamic_row").requires().dtypes == {"bfloat16"}
    assert step("quant", "fp8_dynamic_row").requires().devices == {"cuda"}


@pytest.mark.parametrize(
    ("denoiser_class", "size", "share"),
    [("FluxTransformer2DModel", 64, 0.28), ("PixArtTransformer2DModel", 64, 0.45), ("Unknown", 64, 0.45),
     ("Unknown", 32, 0.5)],
)  # fmt: skip
def test_int4_counts_what_is_padded(denoiser_class, size, share):
    int4 = step("quant", "int4_weight", group_size=size, components=["denoiser", "text_encoders"])
    known = site()
    place = dataclasses.replace(known, model=known.model.model_copy(update={"denoiser_class": denoiser_class}))
    assert int4.weight_bytes("denoiser", place) / 2 == pytest.approx(share, abs=0.005)
    assert int4.weight_bytes("text_encoders", place) == 0.5 + 4 / size
    assert int4.weight_bytes("vae", place) is None


def test_int4_takes_only_inputs_that_divide_into_groups():
    """The choice alone: packing needs CUDA."""
    int4 = step("quant", "int4_weight", group_size=64)
    chosen = _chooser(int4, site(), int4.group_size, frozenset())
    assert chosen(nn.Linear(128, 48), "to_q")
    assert not chosen(nn.Linear(96, 48), "to_q")


@pytest.mark.parametrize(
    ("name", "change"), [("int4_weight", {"group_size": 48}), ("int8_weight", {"min_features": 8})]
)
def test_values_that_no_kernel_takes_are_refused(name, change):
    with pytest.raises(ValidationError):
        step("quant", name, **change)


# --- which layers: a model's own list, and what is tied or has one row ---


def test_layers_that_the_model_names_stay_by_whole_parts_of_the_path():
    pipe, quant = xl_pipeline(), step("quant", "int8_weight")
    named = xl_site(quant_skip=("time_embedding", "mid_block.attentions", "proj_out", "down_blocks.1.att"))
    quant.apply(pipe, named)
    plain = {path for path, w in weights(pipe).items() if not isinstance(w, Int8Tensor)}
    beginnings = ("time_embedding.", "mid_block.attentions.")
    assert plain == {path for path in weights(pipe) if path.startswith(beginnings)}
    assert any(path.endswith(".proj_out") for path in weights(pipe)), "proj_out would be the last layer's name"
    assert quant.verify(pipe, named).numbers["unet_plain"] == len(plain)


def models_with_lists() -> list[str]:
    return [name for name in option_names("model") if values("model", name).get("quant_skip")]


@pytest.mark.parametrize("name", models_with_lists())
def test_each_name_in_a_models_list_is_one_of_its_layers(name):
    asked = cell(name)
    for pipe, of in zip(pipelines(asked), asked.sites, strict=True):
        parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
        paths = {path for part in parts for path, _ in part.named_modules()}
        assert set(of.model.quant_skip) <= paths


ONE_OF_EACH = ["sdxl", "flux_dev", "flux2_klein", "sd35_medium", "sana_1600m"]
ONE_OF_EACH += ["pixart_sigma", "qwen_image", "z_image", "wan21_t2v_1_3b", "ltx_video"]
ONE_OF_EACH += ["cogvideox_2b", "hunyuan_video"]


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_dynamic_quantization_leaves_the_layers_that_see_one_row_per_picture(family):
    """Their products are too small for int8 kernels, and one scale per tensor would take their range from the rest."""
    asked = cell(family)
    (pipe,) = pipelines(asked)
    denoiser = getattr(pipe, asked.recipe.model.denoiser)
    rows: dict[str, int] = {}

    def seen(path: str) -> Any:
        return lambda module, given: rows.__setitem__(path, given[0].numel() // module.in_features)

    linears = {path: part for path, part in denoiser.named_modules() if isinstance(part, nn.Linear)}
    for path, part in linears.items():
        part.register_forward_pre_hook(seen(path))
    drawn([pipe], asked)
    quant = step("quant", "int8_dynamic")
    quant.apply(pipe, asked.sites[0])
    chosen = {path for path, part in linears.items() if isinstance(part.weight, Int8Tensor)}
    assert chosen
    assert min(rows[path] for path in chosen) > 2  # two with guidance
    left = {path for path, count in rows.items() if count > 2} - chosen
    named = {path for path in left for word in asked.recipe.model.quant_skip if f"{path}.".startswith(f"{word}.")}
    assert left - named <= {"norm_out.linear"}


def test_the_lists_of_both_dynamic_schemes_are_the_same():
    assert values("quant", "int8_dynamic")["skip"] == values("quant", "fp8_dynamic")["skip"]


def test_text_encoders_are_quantized_but_for_tied_output_embeddings():
    asked, quant = cell("flux2_klein"), step("quant", "int8_weight_text")
    (pipe,) = pipelines(asked)
    head, words = pipe.text_encoder.lm_head, pipe.text_encoder.get_input_embeddings()
    assert head.weight is words.weight
    quant.apply(pipe, asked.sites[0])
    drawn([pipe], asked)
    assert head.weight is words.weight
    numbers = quant.verify(pipe, asked.sites[0]).numbers
    assert numbers["text_encoder_plain"] == 1
    assert numbers["text_encoder"] > 20


def test_the_controlnet_is_quantized_beside_the_unet():
    asked, quant = cell("sd15_controlnet"), step("quant", "int8_dynamic")
    pipes = pipelines(asked)
    apply(pipes[0], asked.sites[0], quant)
    drawn(pipes, asked)
    assert {"unet", "controlnet"} <= quant.verify(pipes[0], asked.sites[0]).numbers.keys()


# --- filters: the page's, and those that leave nothing ---


def page_shapes() -> set[tuple[int, int]]:
    return {(inputs, outputs) for inputs, outputs in values("quant", "int8_dynamic_sdxl")["skip_shapes"]}


@functools.cache
def of_sdxl(part: str) -> nn.Module:
    """A component of SDXL on the meta device."""
    names = {"unet", "vae", "text_encoder", "text_encoder_2"}
    return meta_modules(packaged_architecture("sdxl"), without=names - {part})[part]


def taken(module: nn.Module, quant: Any, model: Any) -> set[str]:
    here = dataclasses.replace(site(), model=model)
    chosen = _chooser(quant, here, 16, linears_replaced_by_fused(module))
    return {path for path, part in module.named_modules() if chosen(part, path)}


def test_the_page_s_filter_takes_of_sdxl_what_it_takes_there():
    """537 of the UNet's Linears and none of the VAE's, by inputs above 16 and the pairs alone."""
    (request,) = compose_requests(["model=sdxl", "hardware=a100", "quant=int8_dynamic_sdxl"])
    quant, model = request.cell.recipe.quant, request.cell.recipe.model
    assert len(page_shapes()) == 19
    for part, count in {"unet": 537, "vae": 0}.items():
        linears = {path: m for path, m in of_sdxl(part).named_modules() if isinstance(m, nn.Linear)}
        sizes = {path: (m.in_features, m.out_features) for path, m in linears.items()}
        page = {path for path, size in sizes.items() if size[0] > 16 and size not in page_shapes()}
        assert taken(of_sdxl(part), quant, model) == page
        assert len(page) == count
    assert len(taken(of_sdxl("unet"), step("quant", "int8_dynamic"), model)) == 722, "another filter"
    assert len(taken(of_sdxl("vae"), step("quant", "int8_dynamic"), model)) == 8


def test_the_last_rung_of_the_page_s_ladder_has_its_filter():
    ladder = compose_requests(["sweep=accelerate_inference", "hardware=a100"], multirun=True)
    (recipe,) = compose_requests(["recipe=accelerate_inference", "model=sdxl", "hardware=a100"])
    for request in (ladder[-1], recipe):
        assert set(request.cell.recipe.quant.skip_shapes) == page_shapes()
        assert request.cell.recipe.quant.skip == ()


def test_linears_stay_by_their_sizes_and_the_effect_counts_them():
    pipe, quant = pipeline(), step("quant", "int8_weight", skip_shapes=[[64, 64], [32, 128]])
    shapes = {path: tuple(reversed(w.shape)) for path, w in weights(pipe).items()}
    quant.apply(pipe, site())
    plain = {path for path, w in weights(pipe).items() if not isinstance(w, Int8Tensor)}
    assert plain == {path for path, shape in shapes.items() if shape in {(64, 64), (32, 128)}}
    picture(pipe)
    effect = quant.verify(pipe, site())
    assert effect.numbers == {"unet": len(shapes) - len(plain), "unet_plain": len(plain)}
    assert f"of unet ({len(plain)} left by quant.skip_shapes) are" in effect.summary


def test_the_effect_tells_what_left_a_linear_and_which_filter_left_none():
    pipe, quant = pipeline(), step("quant", "int8_dynamic_sdxl", skip=["time_emb", "attn1.to_q"])
    quant.apply(pipe, site(quant_skip=("mid_block",)))
    left = quant.verify(pipe, site(quant_skip=("mid_block",))).summary
    named = [path for path in weights(pipe) if "time_emb" in path or "attn1.to_q" in path]
    middle = [path for path in weights(pipe) if path.startswith("mid_block.") and path not in named]
    assert f"{len(named)} left by quant.skip, {len(middle)} left by model.quant_skip" in left
    assert "0 left by quant.skip_shapes" in left


@pytest.mark.parametrize("name", ["int8_weight", "int8_dynamic", "fp8_storage"])
def test_a_word_of_the_user_s_that_leaves_nothing_is_refused(name):
    pipe, quant = pipeline(), step("quant", name, skip=["attn1.to_q", "typo", "norm_out"])
    with pytest.raises(Refusal, match=r"quant\.skip=\[typo\] leaves nothing.* such as "):
        quant.apply(pipe, site())
    assert not any(isinstance(w, Int8Tensor) or w.dtype.itemsize == 1 for w in weights(pipe).values())


def test_sizes_of_the_user_s_that_leave_nothing_are_refused():
    pipe, quant = pipeline(), step("quant", "int8_weight", skip_shapes=[[64, 64], [65, 64], [640, 640]])
    with pytest.raises(Refusal, match=r"quant\.skip_shapes=\[\[65, 64\]\] leaves nothing.*\[64, 64\]"):
        quant.apply(pipe, site())


def test_the_stages_of_a_cascade_share_a_list():
    cascade = dataclasses.replace(site(), cascade=(site().model,) * 2)
    pipe, quant = pipeline(), step("quant", "int8_weight", skip=["add_embedding"])
    quant.apply(pipe, cascade)
    assert "(0 left by quant.skip" in quant.verify(pipe, cascade).summary


@pytest.mark.parametrize("word", [".", "", "_"])
@pytest.mark.parametrize("name", ["int8_weight", "fp8_storage"])
def test_a_word_that_is_in_every_path_is_refused(name, word):
    with pytest.raises(ValidationError, match="is in nearly every path"):
        step("quant", name, skip=[word])


def test_the_ids_of_older_recipes_stay():
    """skip_shapes came later."""
    for name in ("int8_dynamic", "int8_weight", "int4_weight", "fp8_dynamic", "fp8_weight"):
        assert "skip_shapes" in values("quant", name)
        assert "skip_shapes" not in record_identity(step("quant", name))
    assert "skip_shapes" in record_identity(step("quant", "int8_dynamic_sdxl"))


VAES = sorted(path.parent.parent.parent.name for path in PACKAGED.glob("*/tiny/vae/config.json"))


@pytest.mark.parametrize("name", VAES)
def test_a_vae_of_convolutions_alone_is_refused_in_the_plan(name):
    """Not LTX's, which has Linears in later versions."""
    named = read_model_index(packaged_architecture(name, tiny=True)).components
    denoiser = next(part.class_name for key, part in named.items() if key in ("unet", "transformer"))
    (vae,) = meta_modules(packaged_architecture(name, tiny=True), without=set(named) - {"vae"}).values()
    here = site()
    here = dataclasses.replace(here, model=here.model.model_copy(update={"denoiser_class": denoiser}))
    found = step("quant", "int8_dynamic_vae").problems(here)
    has = any(isinstance(part, nn.Linear) for part in vae.modules())
    assert bool(found) is (not has and denoiser != "LTXVideoTransformer3DModel")
    assert all("quant.components=vae: the VAE of" in reason and "[denoiser]" in reason for reason in found)
    assert not step("quant", "int8_dynamic").problems(here)


# --- float8 storage ---


def stored(module: nn.Module) -> dict[str, torch.dtype]:
    return {path: weight.dtype for path, weight in module.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_stored_in_float8_and_computed_in_the_precision_of_the_pipeline(dtype):
    pipe, quant = pipeline(dtype), step("quant", "fp8_storage")
    assert quant.order is Order.CAST
    assert quant.traits == {Trait.CASTS_STORAGE}
    quant.apply(pipe, site())
    outputs = []
    pipe.unet.register_forward_hook(lambda module, given, out: outputs.append(out[0].dtype))
    assert np.isfinite(picture(pipe)).all()
    assert set(outputs) == {dtype}
    kept = {path for path, found in stored(pipe.unet).items() if found != torch.float8_e4m3fn}
    assert kept
    assert all("norm" in path for path in kept)
    assert set(stored(pipe.vae).values()) == {dtype}
    effect = quant.verify(pipe, site())
    assert effect.numbers["unet"] > 50
    assert effect.numbers["unet_share"] > 0.9
    assert f"computed in {str(dtype).removeprefix('torch.')}" in effect.summary


def test_float8_storage_and_the_precision_step_bear_each_other():
    pipe, precision, quant = pipeline(), step("precision", "fp32"), step("quant", "fp8_storage")
    apply(pipe, site(), precision, quant)
    picture(pipe)
    layers = [path for path, held in stored(pipe.unet).items() if held == torch.float8_e4m3fn and ".weight" in path]
    assert quant.verify(pipe, site()).numbers["unet"] == len(layers) > 50
    assert "unet float32" in precision.verify(pipe, site()).summary, "what it computes in, not what is stored"


def test_float8_storage_leaves_what_the_step_and_the_model_name():
    pipe, quant = pipeline(), step("quant", "fp8_storage", skip=["attn2.to_q"])
    named = site(quant_skip=("time_embedding", "conv_out"))
    quant.apply(pipe, named)
    plain = {path.rpartition(".")[0] for path, dtype in stored(pipe.unet).items() if dtype == torch.float32}
    expected = {path for path in plain if "norm" in path or "attn2.to_q" in path}
    assert plain == {*expected, "time_embedding.linear_1", "time_embedding.linear_2", "conv_out"}


def test_a_pipeline_that_is_stored_in_float8_is_not_copied():
    """diffusers' hooks would widen the weights of the original for the copy's products."""
    pipe = pipeline()
    step("quant", "fp8_storage").apply(pipe, site())
    with pytest.raises(Refusal, match="quant=fp8_storage: .* load the pipeline once more instead of copying it"):
        copy.deepcopy(pipe)


def test_a_layer_that_was_widened_for_good_is_found():
    pipe, quant = pipeline(), step("quant", "fp8_storage")
    quant.apply(pipe, site())
    pipe.unet.conv_in.to(torch.float32)
    with pytest.raises(NoEffect, match=r"quant=fp8_storage: (\d+) of"):
        quant.verify(pipe, site())


def test_a_layer_that_lost_its_hook_cannot_compute():
    pipe = pipeline()
    step("quant", "fp8_storage").apply(pipe, site())
    pipe.unet.conv_in._diffusers_hook._fn_refs[-1].forward = pipe.unet.conv_in.forward
    pipe.unet.conv_in.forward = type(pipe.unet.conv_in).forward.__get__(pipe.unet.conv_in)
    assert pipe.unet.conv_in._diffusers_hook.get_hook(_LAYERWISE_CASTING_HOOK) is not None
    with pytest.raises(RuntimeError):
        picture(pipe)


def test_a_weight_beyond_the_range_of_float8_is_refused():
    pipe = pipeline()
    pipe.unet.conv_in.weight.data[0, 0, 0, 0] = 500.0
    with pytest.raises(Refusal, match="unet.conv_in has weights beyond the range of float8_e4m3fn"):
        step("quant", "fp8_storage").apply(pipe, site())
    wide = pipeline()
    wide.unet.conv_in.weight.data[0, 0, 0, 0] = 500.0
    step("quant", "fp8_storage", storage="float8_e5m2").apply(wide, site())


def test_text_encoders_are_not_stored_in_float8():
    """Pipelines draw their noise in the dtype that the text encoder says it has."""
    with pytest.raises(ValidationError, match="components"):
        step("quant", "fp8_storage", components=["text_encoders"])
