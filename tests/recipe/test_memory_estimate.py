"""recipe.rules.estimate and what refuses by it: bytes by hand, and remedies that really fit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from diffopt.config import Composer
from diffopt.config.resolve import compose_requests
from diffopt.recipe import rules
from diffopt.recipe.cell import Cell
from diffopt.recipe.options import shipped_step
from diffopt.recipe.plan import Plan, make_plan
from diffopt.recipe.rules import remedies
from diffopt.recipe.rules.estimate import GIB, Estimate, estimate_memory_of_cell, estimated_denoiser_batch
from diffopt.recipe.rules.remedies import remedies_for_memory as remedies_for
from diffopt.schema.model import Activations, Parameters
from diffopt.schema.step import Order, Step

MILLION = 10**6
SIZES = {"denoiser": 4000 * MILLION, "text_encoders": 1000 * MILLION, "vae": 100 * MILLION}
COUNTED = {"denoise": 500 * MILLION, "decode": 900 * MILLION}


def cell(*overrides: str, parameters: Mapping[str, Any] = SIZES, activations: Mapping[str, Any] = COUNTED) -> Cell:
    """sd15 with round figures: 512x512, guidance 7.5."""
    (request,) = compose_requests(["model=sd15", "hardware=t4", *overrides])
    known = {"parameters": Parameters(**parameters), "activations": Activations(**activations)}
    return with_model(request.cell, **known)


def with_model(cell: Cell, **changes: Any) -> Cell:
    return with_recipe(cell, model=cell.recipe.model.model_copy(update=changes))


def with_recipe(cell: Cell, **changes: Any) -> Cell:
    return cell.model_copy(update={"recipe": cell.recipe.model_copy(update=changes)})


def needed(cell: Cell) -> Estimate:
    found = estimate_memory_of_cell(cell)
    assert found is not None
    return found


class Offloading(Step):
    """Keeps the part that works and nothing else, as model offloading does."""

    order = Order.OFFLOAD
    kind: str = "offloading"

    def on_device(self, weights: Mapping[str, float], working: str | None) -> float:
        return 0 if working is None else weights[working]


class Halving(Step):
    """Leaves half of what the decoder needs."""

    order = Order.LAYOUT
    kind: str = "halving"

    def activation_share(self, working: str, *, batch: int, height: int, width: int) -> float:
        assert (batch, height, width) == (3, 512, 512)
        return 0.5 if working == "vae" else 1.0


@pytest.mark.parametrize(("precision", "weight"), [("fp32", 4), ("fp16", 2), ("bf16", 2)])
def test_weights_and_the_larger_activations_in_the_precision(precision: str, weight: int) -> None:
    found = needed(cell(f"precision={precision}"))
    assert (found.moment, found.weights, found.activations) == (
        "decoding",
        5100 * MILLION * weight,
        900 * MILLION * weight,
    )
    assert found.total == 6000 * MILLION * weight


def test_a_vae_in_float32_computes_in_it() -> None:
    found = needed(cell("precision=fp16", "precision.vae=float32"))
    assert found.weights == 5000 * MILLION * 2 + 100 * MILLION * 4
    assert found.activations == 900 * MILLION * 4


@pytest.mark.parametrize(
    ("override", "factor"),
    [
        ("workload.batch_size=3", 3),
        ("workload.height=1024", 2),
        ("workload.width=256", 0.5),
    ],
)
def test_activations_grow_with_what_is_asked(override: str, factor: float) -> None:
    assert needed(cell("precision=fp16", override)).activations == 900 * MILLION * 2 * factor


def test_frames_count_beside_the_customary_ones() -> None:
    short = cell("precision=fp16")
    video = with_model(short, frames=81).model_copy(
        update={"workload": short.workload.model_copy(update={"frames": 161})}
    )
    assert needed(video).activations == round(900 * MILLION * 2 * 161 / 81)


@pytest.mark.parametrize(
    ("denoiser", "guidance", "share"),
    [
        ("UNet2DConditionModel", 7.5, 1),
        ("UNet2DConditionModel", 1.0, 0.5),
        ("WanTransformer3DModel", 7.5, 1),
        ("WanTransformer3DModel", 1.0, 1),  # one half after the other
    ],
)
def test_without_guidance_half_of_the_batch_is_gone(denoiser: str, guidance: float, share: float) -> None:
    counted = {"denoise": 500 * MILLION, "decode": None}
    asked = cell("precision=fp16", f"workload.guidance={guidance}", activations=counted)
    found = needed(with_model(asked, denoiser_class=denoiser))
    assert (found.moment, found.activations) == ("denoising", 500 * MILLION * 2 * share)


def test_embedded_guidance_has_one_half() -> None:
    model = cell().recipe.model
    assert estimated_denoiser_batch(model, 7.5) == 2
    assert estimated_denoiser_batch(model.model_copy(update={"embedded_guidance": True}), 7.5) == 1


def test_quantizing_saves_after_loading_alone() -> None:
    """Resident weights are placed before they are quantized, so loading is the worst moment."""
    plain, small = cell("precision=bf16"), cell("precision=bf16", "quant=int8_weight")
    assert (needed(small).moment, needed(small).total) == ("loading", 5100 * MILLION * 2)
    assert needed(plain).total == 6000 * MILLION * 2
    much = cell("precision=bf16", "quant=int8_weight", "workload.batch_size=9")
    assert needed(much).weights == (4000 * 1 + 1100 * 2) * MILLION
    assert needed(much).activations == 9 * 900 * MILLION * 2


@pytest.mark.parametrize(
    ("quant", "weight"), [("int8_dynamic", 1), ("int4_weight", 1.16 * 0.5625), ("fp8_dynamic", 1), ("fp8_weight", 1)]
)
def test_bytes_of_quantized_weights(quant: str, weight: float) -> None:
    many = cell("precision=bf16", f"quant={quant}", "workload.batch_size=9", "hardware=h100")
    assert needed(many).weights == (4000 * weight + 1100 * 2) * MILLION


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of a step made up here
def test_offloading_keeps_what_works_and_what_was_quantized_before_it() -> None:
    base = cell("precision=bf16", "quant=int8_weight")
    moved = with_recipe(base, memory=Offloading())
    found = needed(moved)
    assert (found.moment, found.weights) == ("denoising", 4000 * MILLION)
    assert found.activations == 500 * MILLION * 2


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of a step made up here
def test_a_step_may_save_activations() -> None:
    base = cell("precision=fp16", "workload.batch_size=3")
    assert needed(with_recipe(base, vae=Halving())).activations == 3 * 500 * MILLION * 2
    assert needed(base).activations == 3 * 900 * MILLION * 2


def test_unknown_sizes_are_no_estimate() -> None:
    assert estimate_memory_of_cell(cell(parameters={"denoiser": None, "text_encoders": 1, "vae": 1})) is None
    assert (
        estimate_memory_of_cell(with_recipe(cell(), precision=Halving())) is None
    )  # it does not say what a weight takes
    assert needed(cell(activations={})).activations == 0


def test_a_cascade_is_there_together_and_works_one_by_one() -> None:
    """Later stages scale up one picture, four times larger each."""
    first = cell("precision=fp16", "workload.batch_size=4")
    model, workload = first.recipe.model, first.workload
    later = model.model_copy(update={"name": "later", "upscale_factor": 4, "height": 2048, "width": 2048})
    called = [{"steps": 5, "guidance": 7.5}] * 2
    data = workload.model_dump() | {"later_stages": called}
    asked = type(workload).model_validate(data, strict=False)
    found = needed(with_model(first, cascade=(later, later)).model_copy(update={"workload": asked}))
    assert found.weights == 3 * 5100 * MILLION * 2
    assert found.activations == 16 * 900 * MILLION * 2  # the third stage draws 8192 x 8192


def plan(found: Cell, **choices: str) -> Plan:
    return make_plan(found.model_copy(update={"choices": choices}) if choices else found)


def refusals(found: Cell, **choices: str) -> list[rules.Problem]:
    return [problem for problem in plan(found, **choices).problems if "needs about" in problem.fact]


def test_what_fits_is_not_refused() -> None:
    assert refusals(cell("precision=fp16")) == []


def test_what_cannot_fit_is_refused_with_its_numbers() -> None:
    (problem,) = refusals(cell("precision=fp32"))
    assert problem.keys == ("model=sd15", "hardware=t4")
    assert problem.fact == ("needs about 22.4 GiB while decoding: 19.0 of weights + 3.4 of activations, t4 has 15")
    assert problem.remedy.startswith("it would fit with precision=fp16")


def test_nothing_is_refused_where_the_memory_is_not_known() -> None:
    assert refusals(cell("hardware=cpu", "workload.batch_size=100")) == []


def test_a_close_call_is_noted() -> None:
    close = {"denoiser": 6600 * MILLION, "text_encoders": None, "vae": None}
    found = plan(cell("precision=fp16", parameters=close))
    assert found.status == "ok"
    (note,) = [note for note in found.notes if "needs about" in note]
    assert "14.0 GiB" in note
    assert "t4 has 15" in note
    assert not any("needs about" in note for note in plan(cell("precision=fp16")).notes)


def test_a_smaller_batch_is_the_largest_that_fits() -> None:
    (problem,) = refusals(cell("precision=fp16", "workload.batch_size=9"))
    assert "workload.batch_size=2" in problem.remedy
    assert needed(cell("precision=fp16", "workload.batch_size=2")).total <= 15 * GIB
    assert needed(cell("precision=fp16", "workload.batch_size=4")).total > 15 * GIB


def test_remedies_are_together_where_one_is_not_enough() -> None:
    (problem,) = refusals(cell("precision=fp32", "workload.batch_size=9"))
    assert "precision=fp16 workload.batch_size=2" in problem.remedy


def test_nothing_helps_a_model_that_is_too_large() -> None:
    huge = {"denoiser": 10**12, "text_encoders": 10**12, "vae": 10**12}
    (problem,) = refusals(cell(parameters=huge, activations={"denoise": 10**12, "decode": 10**12}))
    assert problem.remedy.startswith("none of the options tried (precision, vae, memory, quant, compile) makes it fit")


def test_compiling_otherwise_is_a_remedy_where_it_lets_weights_move() -> None:
    """Alone it saves nothing, and what is not compiled stays so."""
    large = {"denoiser": 3400 * MILLION, "text_encoders": 3400 * MILLION, "vae": 3400 * MILLION}
    counted = {"denoise": 500 * MILLION, "decode": 500 * MILLION}
    base = cell("precision=fp16", parameters=large, activations=counted)
    (problem,) = refusals(base)
    assert problem.remedy.startswith("it would fit with memory=model_offload, or with")
    assert "compile" not in problem.remedy
    compiled = with_recipe(base, compile=shipped_step("compile", "default"))
    (problem,) = refusals(compiled, compile="default")
    assert "memory=model_offload compile=regional" in problem.remedy


def test_quantizing_text_encoders_is_a_remedy() -> None:
    counted = {"denoise": 500 * MILLION, "decode": 4000 * MILLION}
    sizes = {"denoiser": 1000 * MILLION, "text_encoders": 2500 * MILLION, "vae": 0}
    base = with_recipe(cell("precision=fp16", parameters=sizes, activations=counted))
    found = remedies_for(base, needed(base).total - 3000 * MILLION, lambda remedy: "quant" in str(remedy))
    assert [str(remedy) for remedy in found] == ["quant=int8_weight_text"]


def test_every_remedy_fits_and_works(monkeypatch: pytest.MonkeyPatch) -> None:
    large = cell("precision=fp32", "workload.batch_size=9")
    found = remedies_for(large, 15 * GIB, lambda remedy: True)
    assert found
    for remedy in found:
        (request,) = compose_requests(["model=sd15", "hardware=t4", *str(remedy).split()])
        again = with_model(request.cell, parameters=large.recipe.model.parameters)
        again = with_model(again, activations=large.recipe.model.activations)
        assert again.recipe.steps == remedy.cell.recipe.steps
        assert needed(again).total <= 15 * GIB
    assert all(
        "precision" not in str(one) for one in remedies_for(large, 15 * GIB, lambda r: "precision" not in str(r))
    )


def test_a_remedy_that_another_rule_refuses_is_not_told() -> None:
    """bfloat16 would fit on a T4, but compiling cannot work in it there."""
    base = with_model(cell("precision=fp32", "compile=default"), dtype="bfloat16")
    (problem,) = refusals(base, compile="default")
    assert "precision=bf16" not in problem.remedy
    (problem,) = refusals(with_recipe(base, compile=shipped_step("compile", "none")))
    assert "precision=bf16" in problem.remedy


def test_offloading_is_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the half precision alone is not enough, or with it."""
    monkeypatch.setattr(remedies, "TRIED", {"precision": ("fp16",), "memory": ("offloading",)})
    steps = {"fp16": shipped_step("precision", "fp16"), "offloading": Offloading()}
    monkeypatch.setattr(remedies, "shipped_step", lambda group, option: steps[option])
    large = {"denoiser": 5000 * MILLION, "text_encoders": 5000 * MILLION, "vae": 100 * MILLION}
    (problem,) = refusals(cell("precision=fp16", parameters=large))
    assert problem.remedy == "it would fit with memory=offloading"
    (problem,) = refusals(cell("precision=fp32", parameters=large))
    assert problem.remedy == "it would fit with precision=fp16 memory=offloading"


@pytest.mark.parametrize(
    ("group", "option"),
    [
        ("precision", "tf32"),
        ("quant", "int8_dynamic_vae"),
        *((g, o) for g, os in remedies.TRIED.items() for o in os),
    ],
)
def test_a_shipped_step_is_what_composing_gives(group: str, option: str) -> None:
    if option not in Composer().options(group):
        assert shipped_step(group, option) is None
        return
    (request,) = compose_requests(["hardware=h100", f"{group}={option}"])
    assert shipped_step(group, option) == getattr(request.cell.recipe, group)


def test_no_torch() -> None:
    code = "import sys, diffopt.recipe.rules.estimate, diffopt.recipe.rules.remedies; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
