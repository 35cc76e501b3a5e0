"""The step since which values are not finite is named, wherever in the plan it is, and with what they are finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.rows import a_cell

from diffopt.models import calls
from diffopt.pipeline.build import build_pipelines
from diffopt.pipeline.meter import Meter
from diffopt.pipeline.not_finite import noting_not_finite, since_which_step, where_not_finite
from diffopt.recipe.plan import make_plan
from diffopt.recipe.planned import Plan
from diffopt.schema.step import Effect

torch.set_num_threads(1)
WORDS = (
    "precision=bf16",
    "fuse=qkv",
    "quant=int8_weight",
    "layout=channels_last",
    "scheduler=ddim",
    "workload.steps=1",
)


@pytest.fixture(scope="module")
def plan() -> Plan:
    found = make_plan(a_cell(*WORDS))
    assert not found.problems
    assert [group for group, _ in found.steps] == ["precision", "memory", "fuse", "quant", "layout", "scheduler"]
    return found


def spoil_weights(pipe: Any) -> None:
    pipe.unet.conv_out.bias.data[0] = torch.nan


def spoil_decoder(pipe: Any) -> None:
    pipe.vae.decoder.conv_out.bias.data[0] = torch.inf  # one channel: the picture is not of one colour


@pytest.fixture
def spoiling(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def spoil(group: str, how: Callable[[Any], None] = spoil_weights) -> None:
        step = type(dict(plan.steps)[group])
        plainly = step.apply

        def apply(self: Any, pipe: Any, site: Any) -> None:
            plainly(self, pipe, site)
            how(pipe)

        monkeypatch.setattr(step, "apply", apply)
        monkeypatch.setattr(step, "verify", lambda self, pipe, site: Effect("does not look"))

    return spoil


@pytest.mark.parametrize(
    ("group", "says"),
    [
        pytest.param(
            "precision", "they are so since precision=bf16, and finite with precision=fp32", marks=pytest.mark.slow
        ),
        ("quant", "they are so since quant=int8_weight, and finite with precision=bf16 memory=resident fuse=qkv"),
        pytest.param(
            "scheduler",
            "they are so since scheduler=ddim, and finite with precision=bf16 memory=resident fuse=qkv "
            "quant=int8_weight layout=channels_last",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_step_that_spoils_is_named(
    plan: Plan, spoiling: Callable[..., None], monkeypatch: pytest.MonkeyPatch, group: str, says: str
) -> None:
    if group == "precision":  # fp32 is of the same class
        step = dict(plan.steps)["precision"]
        plainly = type(step).apply

        def apply(self: Any, pipe: Any, site: Any) -> None:
            plainly(self, pipe, site)
            if self == step:
                spoil_weights(pipe)

        monkeypatch.setattr(type(step), "apply", apply)
    else:
        spoiling(group)
    assert since_which_step(plan) == says


def test_a_model_that_is_spoiled_itself_is_said_to_be(plan: Plan, spoiling: Callable[..., None]) -> None:
    spoiling("memory")  # which belongs to each try, as the model does
    assert since_which_step(plan) == "they are so before any step: with the model's own weights in float32"


@pytest.mark.slow
def test_what_is_finite_when_built_again_names_no_step(plan: Plan) -> None:
    assert since_which_step(plan) == "the same pipeline built again has finite values, so no step can be named"


def test_what_fails_when_built_again_says_so(plan: Plan, spoiling: Callable[..., None]) -> None:
    def fails(pipe: Any) -> None:
        raise KeyError("conv_in")

    spoiling("memory", fails)
    assert since_which_step(plan).startswith("since which step cannot be told: applying memory (resident): KeyError")


@pytest.mark.parametrize(
    ("how", "where"),
    [(spoil_weights, "from denoising step 1 on"), (spoil_decoder, "after decoding"), (lambda pipe: None, None)],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # PIL's cast of what is no number
def test_where_values_are_first_not_finite(how: Callable[[Any], None], where: str | None) -> None:
    cell = a_cell("workload.steps=2")
    (pipe,) = build_pipelines(make_plan(cell))
    how(pipe)
    before = [set(vars(owner)) for owner in (pipe.scheduler, pipe.vae)]
    stages = calls.calls_of_models((pipe,), cell.recipe.model.stages, cell.workload)
    assert where_not_finite(stages) == where
    assert [set(vars(owner)) for owner in (pipe.scheduler, pipe.vae)] == before
    meter = Meter((pipe,), cell)
    with noting_not_finite(meter.stages) as found:
        sample = meter.call()
    assert found[:1] == ([where] if where else [])
    assert sample.parts[0].iterations == 2, "the call goes on"
