"""Every step option: its YAML says everything, and its step proves its effect, or that it had none."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.option_steps import CONF, apply, step, values
from support.tiny_pipelines import picture, pipeline, site
from support.tolerances import EXACT, EXACT_OPTIONS, LOSSY_OPTIONS

from diffopt.errors import NoEffect, Refusal
from diffopt.schema.step import Order, registered_step_kinds

GROUPS = ("precision", "memory", "fuse", "quant", "attention", "layout", "scheduler", "compile")
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]

# what runs on the CPU without another package, and how far it may be from the reference
OWN = [("precision", "fp32"), ("memory", "resident"), ("scheduler", "pndm")]  # what the toy pipeline does by itself
CPU = dict.fromkeys([*OWN, *EXACT_OPTIONS], EXACT) | {pair: lossy.largest for pair, lossy in LOSSY_OPTIONS.items()}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return picture(pipeline())


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_yaml_lists_every_field_and_says_when_it_helps_and_hurts(group, name):
    assert set(values(group, name)) == set(registered_step_kinds(group)[values(group, name)["kind"]].model_fields)
    text = (CONF / group / f"{name}.yaml").read_text()
    first = text.splitlines()[0]
    assert re.match(r"# \S", first)
    assert len(first) <= 110
    for word in ("# What: ", "# Helps: ", "# Hurts: "):
        assert word in text


@pytest.mark.parametrize("group", GROUPS)
def test_every_kind_has_an_option(group):
    assert {values(group, name)["kind"] for g, name in OPTIONS if g == group} == set(registered_step_kinds(group))


@pytest.mark.parametrize(("group", "name"), CPU)
def test_step_keeps_the_picture_and_proves_its_effect(group, name, reference):
    pipe, chosen = pipeline(), step(group, name)
    apply(pipe, site(), chosen)
    assert np.abs(picture(pipe) - reference).max() <= CPU[group, name]
    effect = chosen.verify(pipe, site())
    assert effect.summary
    assert effect.numbers


NO_EFFECT = [pair for pair in CPU if pair not in OWN]


@pytest.mark.parametrize(("group", "name"), [*NO_EFFECT, ("scheduler", "euler"), ("precision", "bf16")])
def test_a_step_that_did_nothing_is_found_out(group, name):
    pipe, chosen = pipeline(), step(group, name)
    picture(pipe)
    with pytest.raises(NoEffect):
        chosen.verify(pipe, site())


def test_all_steps_that_go_together_prove_their_effects(reference):
    pipe = pipeline()
    names = {
        "fuse": "qkv",
        "quant": "int8_dynamic",
        "attention": "sdpa",
        "layout": "channels_last",
        "scheduler": "pndm",
    }
    steps = [step(group, name) for group, name in names.items()]
    apply(pipe, site(), *steps)
    assert np.abs(picture(pipe) - reference).max() <= CPU["quant", "int8_dynamic"]
    for one in steps:
        one.verify(pipe, site())


@pytest.mark.parametrize(("group", "name"), [("quant", "int8_weight"), ("quant", "fp8_storage"), ("attention", "sdpa")])
def test_a_component_that_the_model_lacks_is_refused_by_its_key(group, name):
    chosen = step(group, name, components=["denoiser", "vae"])
    without = site(vae=None)
    remedy = f"{group}.components=[denoiser] leaves it out"
    assert chosen.problems(without) == (f"{group}.components=vae: model toy has none, {remedy}",)
    with pytest.raises(Refusal, match=f"{group}.components=vae"):
        chosen.apply(pipeline(), without)


@pytest.mark.parametrize(("group", "name"), [("fuse", "qkv"), ("layout", "channels_last")])
def test_fusion_and_layout_leave_a_component_that_the_model_lacks_unless_it_is_the_only_one(group, name, reference):
    """A cascade has stages without a VAE, and stages with one."""
    chosen, without = step(group, name, components=["denoiser", "vae"]), site(vae=None)
    pipe = pipeline()
    apply(pipe, without, chosen)
    assert np.abs(picture(pipe) - reference).max() <= EXACT
    assert set(chosen.verify(pipe, without).numbers) == {"unet"}
    alone = step(group, name, components=["vae"])
    assert alone.problems(without) == (f"{group}.components=vae: model toy has none",)
    with pytest.raises(Refusal, match=f"{group}.components=vae"):
        alone.apply(pipeline(), without)


def test_orders_are_those_of_the_plan():
    orders = {
        "precision": {Order.LOAD},
        "memory": {Order.PLACE, Order.OFFLOAD},
        "fuse": {Order.FUSE},
        "quant": {Order.QUANTIZE, Order.CAST},
        "attention": {Order.ATTENTION},
        "layout": {Order.LAYOUT},
        "scheduler": {Order.SCHEDULE},
        "compile": {Order.COMPILE},
    }
    options = [(group, step(group, name)) for group, name in OPTIONS if values(group, name)["kind"] != "none"]
    assert {group: {one.order for of, one in options if of == group} for group in orders} == orders


def test_steps_are_read_without_torch():
    code = (
        "import sys, diffopt.recipe.recipe; "
        "sys.exit(any(n.split('.')[0] in ('torch', 'diffusers', 'torchao', 'accelerate') for n in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
