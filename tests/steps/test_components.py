"""The words for parts of a pipeline: what a model lacks, what a stage of a cascade lacks, and words given twice."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support.option_steps import step
from support.slow import first_ones
from support.tiny import tiny
from support.tiny_families import pipelines
from support.tiny_pipelines import pipeline, site

from diffopt.config.request import Request
from diffopt.config.resolve import compose_requests
from diffopt.errors import NoEffect, Refusal
from diffopt.models import calls
from diffopt.pipeline import load
from diffopt.pipeline.build import build_pipelines, verify_steps
from diffopt.recipe.plan import Plan, make_plan
from diffopt.schema.step import Step
from diffopt.steps.components import missing, modules, passes_over

CASCADE = "deepfloyd_if"  # of three stages, of which the last one alone has a VAE and a text encoder
FULL_SIZE = "model.weights=pretrained"
# one option of each kind that can be about the VAE or the text encoders alone, and what runs here of it
PARTS: dict[str, tuple[str, ...]] = {
    "attention=math": ("attention.components=[vae]",),
    "attention=vanilla": ("attention.components=[vae]",),
    "compile=default": ("compile.components=[vae_decode]", "compile.backend=eager"),
    "fuse=qkv": ("fuse.components=[vae]",),
    "layout=channels_last": ("layout.components=[vae]",),
    "quant=fp8_storage": ("quant.components=[vae]", "quant.skip=[]"),
    "quant=int8_weight": ("quant.components=[vae]", "quant.min_features=16", "quant.skip=[]"),
    "quant=int8_dynamic": ("quant.components=[text_encoders]", "quant.min_features=16", "quant.skip=[]"),
    "quant=fp8_weight": ("quant.components=[vae, text_encoders]", "quant.min_features=16", "quant.skip=[]"),
    "vae=tiling": ("vae.tile=16",),
}
# and what is about the denoiser too, which every stage has
ALL = {
    "attention=math": ("attention.components=[denoiser, vae]",),
    "compile=max_autotune": (),
    "quant=int8_dynamic_vae": (),
    "recipe=accelerate_inference": ("scheduler=default",),
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def asked(*words: str, model: str = CASCADE, hardware: str = "cpu") -> Request:
    (request,) = compose_requests([*tiny(model), f"hardware={hardware}", "measure=quick", "workload.steps=2", *words])
    return request


def planned(request: Request) -> Plan:
    return make_plan(request.cell)


@functools.cache
def options(*words: str) -> tuple[str, Step]:
    """The group and the step of the first of the words."""
    group = words[0].split("=")[0]
    return group, getattr(asked(*words).cell.recipe, group)


@pytest.mark.parametrize("option", ALL)
def test_a_part_that_one_stage_has_is_enough_for_the_plan(option: str) -> None:
    request = asked(option, *ALL[option], "precision=fp16", FULL_SIZE, model="deepfloyd_if", hardware="h100")
    assert planned(request).reasons == []


@pytest.mark.parametrize("option", first_ones(PARTS, 3))
def test_a_stage_without_the_part_is_left_and_the_others_prove_the_step(option: str, monkeypatch) -> None:
    request = asked(option, *PARTS[option])
    group, _ = options(option, *PARTS[option])
    plan = planned(request)
    assert plan.reasons == []
    pipes = build_pipelines(plan)
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    calls.draw_pictures(calls.calls_of_models(pipes, request.cell.recipe.model.stages, request.cell.workload))
    first, second, last = [effect for effect in verify_steps(plan, pipes) if effect.group == group]
    for effect in (first, second):
        assert effect.summary.startswith(f"{effect.stage} has no ")
        assert effect.summary.endswith(" and is left as it is")
        assert effect.numbers == {}
    assert last.numbers


@functools.cache
def untouched() -> list[Any]:
    """The stages, each called once."""
    request = asked()
    pipes = pipelines(request.cell)
    calls.draw_pictures(calls.calls_of_models(pipes, request.cell.recipe.model.stages, request.cell.workload))
    return pipes


@pytest.mark.parametrize("option", PARTS)
def test_nothing_done_in_any_stage_is_found_out(option: str, monkeypatch) -> None:
    request = asked(option, *PARTS[option])
    group, chosen = options(option, *PARTS[option])
    stages = iter(untouched())
    monkeypatch.setattr(load, "load_pipeline", lambda *args, **kwargs: next(stages))
    monkeypatch.setattr(type(chosen), "apply", lambda self, pipe, site: None)
    plan = Plan(cell=request.cell, steps=((group, chosen),), problems=(), notes=())
    with pytest.raises(NoEffect) as caught:
        verify_steps(plan, build_pipelines(plan))
    assert caught.value.__notes__ == [f"verifying {group} ({chosen.kind}) of {CASCADE}_x4"]


@pytest.mark.parametrize(
    ("option", "words", "without"),
    [
        ("compile=max_autotune", "compile.components=vae_decode", "compile.components=[denoiser]"),
        ("quant=int8_dynamic_vae", "quant.components=vae", "quant.components=[denoiser]"),
    ],
)
def test_a_part_that_no_stage_has_is_refused_once_in_the_users_words(option: str, words: str, without: str) -> None:
    cascade = "model.cascade=[deepfloyd_if_ii_m]"
    (reason,) = planned(asked(option, cascade)).reasons
    assert f"{words}: no stage of {CASCADE} has one, {without} leaves it out" in reason
    (reason,) = planned(asked(option, model="deepfloyd_if_i_m")).reasons
    assert f"{words}: model deepfloyd_if_i_m has none, {without} leaves it out" in reason


def test_no_module_of_a_part_that_no_stage_has() -> None:
    sites = asked("model.cascade=[deepfloyd_if_ii_m]").cell.sites
    assert [len(missing(place, ["vae", "denoiser"], "quant.components")) for place in sites] == [1, 0], "told once"
    for place in sites:
        assert passes_over(step("vae", "tiling"), place) is None
        with pytest.raises(Refusal, match="no stage"):
            modules(pipeline(), place, ["vae"], "quant.components")


def test_a_step_with_components_of_another_kind_is_not_left() -> None:
    class Other:
        components = ("unet",)

    assert passes_over(Other(), asked().cell.sites[0]) is None  # type: ignore[arg-type]
    assert passes_over(step("cache", "none"), asked().cell.sites[0]) is None
    assert passes_over(step("quant", "int8_weight", components=["vae"]), site(vae=None)) is None, "it is no cascade"


def test_a_later_stage_has_one_picture_of_its_own_size() -> None:
    many = "workload.batch_size=4"
    (reason,) = planned(asked("vae=slicing", many, FULL_SIZE, model="deepfloyd_if")).reasons
    assert "vae=slicing x model=deepfloyd_if_x4: slicing divides batches, and a later stage" in reason
    assert not planned(asked("vae=tiling", "vae.tile=128", FULL_SIZE, model="deepfloyd_if")).reasons
    (reason,) = planned(asked("vae=tiling", "vae.tile=256", FULL_SIZE, model="deepfloyd_if")).reasons
    assert "the picture is 256x256" in reason


@pytest.mark.parametrize(
    ("group", "name", "word"),
    [
        ("attention", "math", "denoiser"),
        ("attention", "vanilla", "vae"),
        ("fuse", "qkv", "vae"),
        ("layout", "channels_last", "vae"),
        ("quant", "int8_weight", "text_encoders"),
        ("quant", "fp8_storage", "denoiser"),
        ("memory", "group_offload", "vae"),
        ("compile", "default", "vae_decode"),
        ("compile", "regional", "denoiser"),
        ("compile", "aot", "denoiser"),
    ],
)
def test_a_word_given_twice_would_make_another_cell_of_the_same_pipeline(group: str, name: str, word: str) -> None:
    with pytest.raises(ValidationError, match=f"names {word} twice"):
        step(group, name, components=[word, word])
