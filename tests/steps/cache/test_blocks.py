"""Caches skip what they say, give the same picture again, and are found out or refused where they cannot work."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import re
from typing import Any

import diffusers
import pytest
import torch
from diffusers import CacheMixin
from diffusers.hooks import group_offloading
from diffusers.hooks._helpers import TransformerBlockRegistry
from pydantic import ValidationError
from support.option_steps import CONF, step, values
from support.tiny import tiny

from diffopt.config.resolve import compose_requests
from diffopt.config.smoke import NEEDS_ON_TINY
from diffopt.errors import NoEffect, Refusal
from diffopt.models import calls
from diffopt.models.classes import DENOISERS, PIPELINES
from diffopt.pipeline.build import build_pipelines
from diffopt.recipe.options import option_names
from diffopt.recipe.plan import Plan, make_plan
from diffopt.schema.step import Effect, registered_step_kinds
from diffopt.steps.cache.support import iterations_for_cache
from diffopt.steps.scheduler.support import SAMPLERS

OPTIONS = sorted(path.stem for path in (CONF / "cache").glob("*.yaml"))
STEPS = 6

# settings by which each option skips something of random weights in six steps
SKIPS = {
    option: tuple(word for word in NEEDS_ON_TINY[f"cache={option}"] if word.startswith("cache."))
    for option in ("first_block", "mag", "sea", "taylorseer", "taylorseer_lite", "pab", "faster")
}
# settings by which nothing is skipped, so that the picture must be the one without a cache
SKIPS_NOTHING = {
    "first_block": ("cache.threshold=0.0",),
    "mag": ("cache.threshold=0.0", "cache.mag_ratios=[1.1]"),
    "sea": ("cache.threshold=0.0",),
    "taylorseer": (f"cache.disable_cache_before_step={STEPS}",),
    "taylorseer_lite": (f"cache.disable_cache_before_step={STEPS}",),
    "pab": ("cache.spatial_attention_timestep_skip_range=[0,1]",),
    "faster": (
        "cache.spatial_attention_timestep_skip_range=[0,1]",
        "cache.unconditional_batch_timestep_skip_range=[0,1]",
    ),
}
FLUX, WAN, COG = "flux_dev", "wan21_t2v_1_3b", "cogvideox_2b"
HOME = dict.fromkeys(SKIPS, FLUX) | {"sea": WAN, "faster": COG}  # a model on which the option works
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # diffusers' FasterCache


@functools.cache
def plan(*words: str) -> Plan:
    (request,) = compose_requests([f"workload.steps={STEPS}", *words])
    return make_plan(request.cell)


class Cell:
    """A cell that is built, by the same calls as a worker's."""

    def __init__(self, model: str, *words: str) -> None:
        self.plan = plan("hardware=cpu", *tiny(model, steps=None), *words)
        self.pipes = build_pipelines(self.plan)
        (self.pipe,) = self.pipes
        self.denoiser: Any = self.pipe.transformer

    def __call__(self) -> torch.Tensor:
        """The latents of one picture, always from the same noise."""
        (stage,) = calls.calls_of_models(self.pipes, self.plan.cell.recipe.model.stages, self.plan.cell.workload)
        noise = [torch.Generator("cpu").manual_seed(seed) for seed in stage.seeds]
        latents: torch.Tensor = self.pipe(**{**stage.arguments, "output_type": "latent"}, generator=noise)[0]
        return latents

    def interrupted(self) -> None:
        """A call of another size and another noise that ends in its last step but one, as by Ctrl-C."""
        (stage,) = calls.calls_of_models(self.pipes, self.plan.cell.recipe.model.stages, self.plan.cell.workload)

        def interrupt(_pipe: Any, index: int, _timestep: Any, _tensors: Any) -> dict[str, Any]:
            if index == STEPS - 2:
                raise KeyboardInterrupt
            return {}

        noise = [torch.Generator("cpu").manual_seed(seed + 1) for seed in stage.seeds]
        wider = {"width": stage.arguments["width"] * 2, "callback_on_step_end": interrupt}
        with pytest.raises(KeyboardInterrupt):
            self.pipe(**{**stage.arguments, **wider, "output_type": "latent"}, generator=noise)

    def effects(self) -> dict[str, Effect]:
        """The proofs; those of other groups may want a whole picture."""
        (site,) = self.plan.cell.sites
        return {
            g: one.verify(self.pipe, site) for g, one in self.plan.steps if g in ("cache", "compile", "quant", "fuse")
        }

    @property
    def effect(self) -> Effect:
        return self.effects()["cache"]


def cached(option: str, model: str | None = None, *words: str) -> Cell:
    return Cell(model or HOME[option], f"cache={option}", *SKIPS[option], *words)


@functools.cache
def plainly(model: str) -> torch.Tensor:
    """The latents without a cache."""
    return Cell(model)()


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.set_num_threads(1)
    torch._dynamo.reset()


# --- options and plans, without torch


@pytest.mark.parametrize("name", OPTIONS)
def test_yaml_lists_every_field_and_says_when_it_helps_and_hurts(name: str) -> None:
    assert set(values("cache", name)) == set(registered_step_kinds("cache")[values("cache", name)["kind"]].model_fields)
    text = (CONF / "cache" / f"{name}.yaml").read_text()
    assert re.match(r"# \S", text)
    assert len(text.splitlines()[0]) <= 110
    assert all(word in text for word in ("# What: ", "# Helps: ", "# Hurts: "))


def test_every_kind_has_an_option() -> None:
    assert {values("cache", name)["kind"] for name in OPTIONS} == set(registered_step_kinds("cache"))


REFUSED = [
    ("tiny", "first_block", "UNet2DConditionModel has no enable_cache"),
    ("deepfloyd_if", "mag", "UNet2DConditionModel has no enable_cache"),
    ("sd35_medium", "first_block", "SD3Transformer2DModel has no enable_cache"),
    ("sana_1600m", "pab", "SanaTransformer2DModel has no enable_cache"),
    ("pixart_sigma", "taylorseer", "PixArtTransformer2DModel has no enable_cache"),
    ("z_image", "faster", "ZImageTransformer2DModel has no enable_cache"),
    ("flux2_klein", "first_block", "give different things"),
    ("flux_dev img2img", "first_block", "FluxImg2ImgPipeline names no cache context"),
    ("flux_dev img2img", "pab", "does not tell the current timestep"),
    ("flux_kontext", "taylorseer", "FluxKontextPipeline names no cache context"),
    ("flux_dev", "sea", "does not tell its cache the step and the sigma"),
    ("wan21_t2v_1_3b", "pab", "calls the denoiser twice per step"),
    ("ltx_video", "faster", "no layout in frames is known"),
    ("qwen_image", "mag", "cache=mag_calibrate"),
    ("flux2_klein", "mag", "cache=mag_calibrate"),
]


def test_qwen_image_is_called_twice_per_step_where_it_has_a_negative_prompt_to_guide_away_from() -> None:
    asked = ("model=qwen_image", "model.weights=tiny", "cache=faster", "hardware=cpu", "workload.steps=10")
    assert plan(*asked).problems == ()
    (problem,) = plan(*asked, "workload.negative_prompt=ugly").problems
    assert "calls the denoiser twice per step" in problem.fact


@pytest.mark.parametrize(("model", "option", "reason"), REFUSED)
def test_what_cannot_work_is_refused_before_torch(model: str, option: str, reason: str) -> None:
    problems = [
        p for p in plan(*tiny(model, steps=None), f"cache={option}", "hardware=cpu").problems if "cache" in p.text
    ]
    assert problems
    assert all(reason in problem.fact and problem.keys[0] == f"cache={option}" for problem in problems)


@pytest.mark.parametrize(
    "words",
    [
        (*tiny(WAN, steps=None), "cache=pab", "workload.guidance=1.0"),
        ("model=qwen_image", "model.weights=tiny", "cache=mag", "cache.mag_ratios=[1.0,1.1]"),
        ("model=flux_dev", "model.weights=tiny", "workload=img2img", "cache=mag"),
        ("model=ltx_video", "model.weights=tiny", "cache=faster", "workload.guidance=1.0"),
        ("model=hunyuan_video", "model.weights=tiny", "cache=pab"),
    ],
)
def test_what_works_by_its_workload_is_planned(words: tuple[str, ...]) -> None:
    assert plan(*words, "hardware=cpu").problems == ()


@pytest.mark.parametrize(
    ("option", "steps", "words"),
    [
        ("first_block", 1, ()),
        ("mag", 2, ("cache.retention_ratio=0.9",)),
        ("taylorseer", 3, ()),
        ("taylorseer_lite", 3, ()),
        ("pab", 1, ()),
        ("sea", 2, ()),
        ("faster", 1, ()),
    ],
)
def test_too_few_steps_to_skip_any_are_refused(option: str, steps: int, words: tuple[str, ...]) -> None:
    cell = (*tiny(HOME[option], steps=None), f"cache={option}", "hardware=cpu", *words)
    assert "nothing would be skipped" in plan(*cell, f"workload.steps={steps}").reasons[0]
    assert plan(*cell, f"workload.steps={steps + 1}").status == "ok" or option == "mag"


def test_the_last_step_that_may_be_extrapolated_is_one() -> None:
    words = ("cache.cache_interval=2", "cache.disable_cache_before_step=2", "cache.disable_cache_after_step=3")
    cell = Cell(FLUX, "cache=taylorseer", *words)
    cell()
    assert cell.effect.numbers["skipped"] == cell.effect.numbers["called"] // STEPS


@pytest.mark.parametrize("steps", [1, 5, 8, 12])
def test_a_number_of_steps_that_no_sampler_makes_of_the_workloads_is_refused(steps: int) -> None:
    cell = (*tiny(FLUX, steps=None), "cache=mag", "hardware=cpu", f"cache.num_inference_steps={steps}")
    (problem,) = plan(*cell).problems
    assert f"cache.num_inference_steps={steps}: the workload runs {STEPS} steps; set it to null" in problem.fact
    assert plan(*cell, f"workload.steps={steps}").reasons == (
        [] if steps > 1 else plan(*cell, "workload.steps=1").reasons
    )


@pytest.mark.parametrize("strength", [0.15, 0.3, 0.5, 0.75, 0.8, 1.0])
def test_steps_from_a_picture_are_counted_as_diffusers_does(strength: float) -> None:
    workload = plan(
        "model=flux_dev", "model.weights=tiny", "workload=img2img", "workload.steps=10", f"workload.strength={strength}"
    ).cell.workload
    pipe = diffusers.FluxImg2ImgPipeline.__new__(diffusers.FluxImg2ImgPipeline)
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe.scheduler.set_timesteps(10)
    assert iterations_for_cache(workload) == pipe.get_timesteps(10, strength, "cpu")[1]


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (("cache=first_block", "compile=default"), ("cache=first_block", "compile=default")),
        (("cache=first_block", "compile=default", "compile.fullgraph=false"), ("cache=first_block", "compile=default")),
        (("cache=first_block", "compile=default", "compile.components=[vae_decode]"), None),
        (("cache=first_block", "compile=regional"), None),
        (("cache=taylorseer_lite", "compile=regions"), None),
        (("cache=pab", "compile=regional"), ("cache=pab", "compile=regional")),
        (("cache=pab", "compile=regional", "compile.fullgraph=false"), None),
        (("cache=taylorseer", "compile=default", "compile.fullgraph=false"), None),
        (("cache=faster", "compile=regional", "compile.fullgraph=false"), None),
        (("cache=faster", "compile=default", "compile.fullgraph=false"), ("cache=faster", "compile=default")),
        (("cache=mag", "compile=aot"), ("cache=mag", "compile=aot")),
        (("cache=pab", "compile=reduce_overhead", "compile.fullgraph=false"), ("cache=pab", "compile=reduce_overhead")),
    ],
)
def test_caches_meet_compile_by_their_traits(words: tuple[str, ...], keys: tuple[str, str] | None) -> None:
    found = [p.keys for p in plan("model=flux_dev", "model.weights=tiny", "hardware=a100", *words).problems]
    assert [pair for pair in found if {k.split("=")[0] for k in pair} == {"cache", "compile"}] == (
        [keys] if keys else []
    )


@pytest.mark.parametrize(
    ("option", "changes", "message"),
    [
        ("mag", {"calibrate": True, "mag_ratios": [1.0]}, "calibrate measures the ratios"),
        ("taylorseer", {"use_lite_mode": True}, "cache_identifiers null"),
        ("taylorseer_lite", {"skip_predict_identifiers": ["x"]}, "skip_predict_identifiers must be null"),
        ("taylorseer", {"cache_identifiers": None}, "give cache_identifiers"),
        (
            "pab",
            {f"{kind}_attention_block_skip_range": None for kind in ("spatial", "temporal", "cross")},
            "one of the",
        ),
        ("faster", {"spatial_attention_timestep_skip_range": [-1, 1001]}, "999"),
        (
            "pab",
            {"spatial_attention_timestep_skip_range": [800, 100]},
            r"holds no timestep; give \[LOW, HIGH\], LOW below HIGH",
        ),
        ("pab", {"spatial_attention_timestep_skip_range": [2000, 3000]}, "holds no timestep"),
        ("pab", {"cross_attention_timestep_skip_range": [-100, 0]}, "holds no timestep"),
        ("faster", {"unconditional_batch_timestep_skip_range": [641, -1]}, "holds no timestep"),
        ("taylorseer", {"disable_cache_after_step": 2}, "disable_cache_after_step=2: .* give 4 or more, or null"),
        ("taylorseer_lite", {"disable_cache_after_step": 3}, "nothing would be skipped"),
        ("first_block", {"threshold": -0.1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_make_no_sense_are_errors(option: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        step("cache", option, **changes)


# --- what is known of diffusers, against diffusers


def test_pipelines_call_their_denoisers_as_the_table_says() -> None:
    for name, known in PIPELINES.items():
        cls = getattr(diffusers, name)
        source = inspect.getsource(cls.__call__)
        told = hasattr(cls, "current_timestep") and "self._current_timestep = t" in source
        seen = ("cache_context(" in source, told, '"step_index"' in source)
        assert known.denoiser is not None
        assert seen == (known.denoiser.context, known.denoiser.time, known.denoiser.step), name
        assert "maybe_free_model_hooks()" in source, name  # else a cache is never reset


def test_every_denoiser_of_a_model_option_is_known() -> None:
    options = [values("model", name) for name in option_names("model")]
    own = [o for o in options if o.get("denoiser_class") and o.get("pipelines")]
    assert len(own) > 15
    for option in own:
        cls = getattr(diffusers, option["denoiser_class"])
        known = DENOISERS[option["denoiser_class"]]
        assert issubclass(cls, CacheMixin) is known.caches.enabled
        for name in {*option["pipelines"].values()} - {None}:
            assert name in PIPELINES
            source = inspect.getsource(getattr(diffusers, name).__call__)
            if "cache_context(" in source:
                assert ('cache_context("cond_uncond")' in source) is not known.guides_apart, name


def test_blocks_and_outputs_are_as_the_tables_say() -> None:
    TransformerBlockRegistry._register()
    gives_text = {c.__name__: m.return_encoder_hidden_states_index is not None
                  for c, m in TransformerBlockRegistry._registry.items()}  # fmt: skip
    assert (gives_text["Flux2TransformerBlock"], gives_text["Flux2SingleTransformerBlock"]) == (True, False)
    assert [name for name, known in DENOISERS.items() if known.caches.one_sequence_later] == ["Flux2Transformer2DModel"]
    assert gives_text["FluxTransformerBlock"] == gives_text["FluxSingleTransformerBlock"]
    cog = Cell(COG)
    shapes = []
    cog.denoiser.register_forward_hook(lambda module, inputs, output: shapes.append(output[0].shape))
    cog()
    assert shapes[0][2] == cog.denoiser.config.out_channels  # batch, frames, channels
    framed = {name: known.caches.frames for name, known in DENOISERS.items() if known.caches.frames is not None}
    assert framed == {type(cog.denoiser).__name__: "BFCHW"}
    assert [name for name, known in DENOISERS.items() if known.caches.magnitudes] == ["FluxTransformer2DModel"]


# --- what they do


FAMILIES = [
    *((option, HOME[option]) for option in SKIPS),
    ("first_block", WAN),
    ("first_block", "ltx_video"),
    ("first_block", "hunyuan_video"),
    ("mag", "qwen_image"),
    ("mag", "flux2_klein"),
    ("mag", "flux_dev img2img"),
    ("mag", COG),
    ("taylorseer", WAN),
    ("taylorseer", COG),
    ("taylorseer_lite", "ltx_video"),
    ("pab", "hunyuan_video"),
    ("faster", FLUX),
    ("faster", "qwen_image"),
]


@pytest.mark.parametrize(("option", "model"), FAMILIES)
def test_a_cache_skips_and_begins_anew_in_each_call(option: str, model: str) -> None:
    cell = cached(option, model)
    assert cell.plan.problems == ()
    first, second = cell(), cell()
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()
    numbers = cell.effect.numbers
    assert 0 < numbers["skipped"] < numbers["called"]
    assert cell.effect.summary.startswith(f"{numbers['skipped']} of {numbers['called']} ")


@pytest.mark.parametrize("option", SKIPS)
def test_a_call_that_did_not_end_leaves_nothing_to_the_next(option: str) -> None:
    cell = cached(option)
    first, proven = cell(), cell.effect
    cell.interrupted()
    assert torch.equal(cell(), first)
    assert cell.effect == proven
    cell.interrupted()
    cell.interrupted()
    assert torch.equal(cell(), first)


def test_a_pipeline_with_a_cache_is_not_copied() -> None:
    """diffusers' hooks would have the copy compute with the original's weights."""
    cell = cached("first_block")
    with pytest.raises(Refusal, match="cache=first_block: .* load the pipeline once more instead of copying it"):
        copy.deepcopy(cell.pipe)


@pytest.mark.parametrize("option", SKIPS)
def test_skipped_modules_did_not_run(option: str) -> None:
    """Counted beneath the cache, by modules that no cache hooks: the projections inside attention."""
    plain, cell = Cell(HOME[option]), cached(option)
    ran = {}
    for one in (plain, cell):
        count = [0]
        inner = next(m for n, m in one.denoiser.named_modules() if re.fullmatch(r".*blocks\.1\.attn1?\.to_q", n))
        inner.register_forward_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        one()
        ran[one] = count[0]
    assert 0 < ran[cell] < ran[plain]


@pytest.mark.parametrize("option", SKIPS_NOTHING)
def test_where_nothing_is_skipped_the_picture_is_exact_and_the_step_says_so(option: str) -> None:
    model = HOME[option]
    cell = Cell(model, f"cache={option}", *SKIPS_NOTHING[option])
    assert (cell() - plainly(model)).abs().max() <= 1e-4
    with pytest.raises(NoEffect, match=r"none of the \d+ \w+ calls was skipped; .*(cache\.|steps)"):
        cell.effects()


@pytest.mark.parametrize(("words", "calls"), [((), 1), (("workload.negative_prompt=ugly",), 2)], ids=["one", "two"])
def test_calls_are_counted_by_steps_blocks_and_contexts(words: tuple[str, ...], calls: int) -> None:
    cell = Cell("qwen_image", "cache=mag", *SKIPS["mag"], *words)
    cell()
    assert cell.effect.numbers["called"] == STEPS * len(cell.denoiser.transformer_blocks) * calls


@pytest.mark.parametrize("option", SKIPS)
def test_a_step_that_did_nothing_is_found_out(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        registered_step_kinds("cache")[values("cache", option)["kind"]], "apply", lambda self, pipe, site: None
    )
    cell = cached(option)
    cell()
    with pytest.raises(NoEffect, match="no cache is installed"):
        cell.effects()


def test_what_takes_the_cache_off_is_found_out() -> None:
    cell = cached("first_block")
    cell()
    cell.denoiser.disable_cache()
    with pytest.raises(NoEffect, match="4 of 4 hooks are gone"):
        cell.effects()


def test_hooks_that_are_passed_by_are_found_out() -> None:
    cell = cached("first_block")
    for block in [*cell.denoiser.transformer_blocks, *cell.denoiser.single_transformer_blocks]:
        block.forward = type(block).forward.__get__(block)
    cell()
    with pytest.raises(NoEffect, match="never called through their hooks"):
        cell.effects()


def test_hooks_that_are_passed_by_later_are_found_out() -> None:
    cell = cached("first_block")
    cell()
    cell.effects()
    for block in [*cell.denoiser.transformer_blocks, *cell.denoiser.single_transformer_blocks]:
        block.forward = type(block).forward.__get__(block)
    cell()
    with pytest.raises(NoEffect, match="4 of 4 hooked modules of transformer were never called through"):
        cell.effects()


def test_one_hook_that_is_passed_by_is_found_out() -> None:
    cell = cached("taylorseer_lite")
    cell.denoiser.proj_out.forward = torch.nn.Linear.forward.__get__(cell.denoiser.proj_out)
    cell()
    with pytest.raises(NoEffect, match="1 of 5 hooked modules of transformer .* such as proj_out"):
        cell.effects()


def test_a_pipeline_that_does_not_reset_the_cache_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cached("first_block")
    monkeypatch.setattr(type(cell.pipe), "maybe_free_model_hooks", lambda self: None)
    cell()
    with pytest.raises(NoEffect, match="never reset the cache"):
        cell.effects()


def test_faster_cache_guesses_the_second_prediction() -> None:
    cell, batches = cached("faster"), []
    cell.denoiser.patch_embed.register_forward_hook(lambda module, inputs, output: batches.append(len(output)))
    cell()
    assert set(batches) == {1, 2}
    assert batches[0] == 2


# --- MagCache's ratios


def test_measured_ratios_can_be_used() -> None:
    measure = Cell(WAN, "cache=mag_calibrate")
    assert torch.equal(measure(), plainly(WAN))
    numbers = measure.effect.numbers
    assert numbers["skipped"] == 0
    ratios = str(numbers["ratios_cond"]).split(", ")
    assert len(ratios) == len(str(numbers["ratios_uncond"]).split(", ")) == STEPS
    used = Cell(WAN, "cache=mag", f"cache.mag_ratios=[{','.join(ratios)}]", "cache.threshold=2.0")
    used()
    assert used.effect.numbers["skipped"] > 0


def test_a_wrong_number_of_steps_is_found_out() -> None:
    cell = cached("mag", FLUX, "cache.num_inference_steps=11")  # as with a sampler that calls the denoiser twice
    cell()
    with pytest.raises(NoEffect, match="counts 11 steps, but 6 ran"):
        cell.effects()


TWICE = ("cache.threshold=0.5", "scheduler=flow_heun")


@pytest.mark.parametrize("words", [("cache=mag", "cache.mag_ratios=[1.0]"), ("cache=mag_calibrate",)])
def test_steps_that_call_the_denoiser_twice_must_be_counted_as_two(words: tuple[str, ...]) -> None:
    (problem,) = plan("hardware=cpu", *tiny(WAN, steps=None), *TWICE, *words).problems
    assert problem.keys == (words[0], "scheduler=flow_heun")
    assert "cache.num_inference_steps=2n-1" in problem.remedy
    cell = Cell(WAN, *TWICE, *words, f"cache.num_inference_steps={2 * STEPS - 1}")
    assert cell.plan.problems == ()
    cell()
    assert cell.effect.numbers["called"] == (2 * STEPS - 1) * len(cell.denoiser.blocks) * 2  # with and without prompt


def test_samplers_that_call_twice_are_known() -> None:
    for name, known in SAMPLERS.items():
        cls = getattr(diffusers, name)
        if name == "SASolverScheduler" or hasattr(cls, "_backends"):  # an order that is no number of calls; no package
            continue
        assert (cls.order == 2) is known.twice, name
        if known.twice:
            sampler = cls()
            sampler.set_timesteps(STEPS)
            assert len(sampler.timesteps) == 2 * STEPS - 1


# --- what only the pipeline itself can tell


def test_a_denoiser_without_caches_is_refused() -> None:
    cell = Cell("sd35_medium")
    with pytest.raises(Refusal, match="SD3Transformer2DModel has no enable_cache"):
        step("cache", "first_block").apply(cell.pipe, cell.plan.cell.sites[0])


def test_a_pipeline_that_names_no_context_is_refused() -> None:
    cell = cached("first_block", "flux_dev img2img")
    with pytest.raises(Refusal, match="names no cache context"):
        cell()


def test_a_pipeline_that_tells_no_timestep_is_refused() -> None:
    with pytest.raises(Refusal, match="does not tell the current timestep"):
        cached("pab", "flux_dev img2img")


def test_two_calls_per_step_are_not_mixed() -> None:
    cell = cached("pab", WAN)
    with pytest.raises(Refusal, match="WanPipeline calls the denoiser twice in a step"):
        cell()


def test_blocks_that_first_block_cannot_subtract_are_refused() -> None:
    with pytest.raises(Refusal, match="give different things"):
        cached("first_block", "flux2_klein")


def test_a_single_block_is_refused() -> None:
    cell = Cell(COG)
    cell.denoiser.transformer_blocks = cell.denoiser.transformer_blocks[:1]
    for option in ("first_block", "mag"):
        with pytest.raises(Refusal, match="CogVideoXTransformer3DModel"):
            step("cache", option, **({"mag_ratios": [1.0]} if option == "mag" else {})).apply(
                cell.pipe, cell.plan.cell.sites[0]
            )


def test_paths_that_match_nothing_are_refused() -> None:
    with pytest.raises(Refusal, match="no module of FluxTransformer2DModel has such a path"):
        cached("taylorseer", FLUX, "cache.cache_identifiers=[nothing]")


@pytest.mark.parametrize("key", ["cache_identifiers", "skip_predict_identifiers"])
def test_so_is_one_among_others_that_match(key: str) -> None:
    words = ".*blocks.0.attn,nosuchthing"
    with pytest.raises(Refusal, match=rf"cache\.{key}=\['nosuchthing'\]: no module of FluxTransformer2DModel"):
        cached("taylorseer", FLUX, f"cache.{key}=[{words}]")


def test_the_timestep_is_read_from_the_device_once_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, reads = cached("pab"), []
    original = torch.Tensor.__float__
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: reads.append(1) or original(self))
    cell()
    assert len(reads) <= 2 * STEPS  # four attentions compare it twice in each step


# --- beside other steps


@pytest.mark.parametrize("words", [("quant=int8_weight", "quant.min_features=16"), ("fuse=qkv",), ("attention=math",)])
def test_caches_go_with_steps_that_change_blocks(words: tuple[str, ...]) -> None:
    cell = cached("first_block", FLUX, *words)
    cell()
    assert cell.effects()["cache"].numbers["skipped"] > 0
    assert (cell() - cached("first_block")()).abs().max() <= (0.1 if "quant" in words[0] else 1e-4)


@pytest.mark.parametrize("option", ["sea", "faster", "first_block"])
def test_a_cache_outlives_offloading_that_takes_its_hooks_off_in_each_call(option: str) -> None:
    """diffusers alone loses caches that hook the denoiser itself after the first call."""
    plain, cell = cached(option), Cell(HOME[option])
    cell.pipe.enable_model_cpu_offload(device="cpu")
    chosen = dict(plain.plan.steps)["cache"]
    chosen.apply(cell.pipe, cell.plan.cell.sites[0])
    expected = plain()
    for _ in range(3):
        assert torch.equal(cell(), expected)
    assert chosen.verify(cell.pipe, cell.plan.cell.sites[0]).numbers["skipped"] == plain.effect.numbers["skipped"]


@pytest.mark.parametrize("option", ["first_block", "pab", "sea"])
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_caches_skip_blocks_that_group_offloading_moves(option: str, kind: str) -> None:
    plain, cell = cached(option), Cell(HOME[option])
    cpu, groups = torch.device("cpu"), {"num_blocks_per_group": 1} if kind == "block_level" else {}
    cell.denoiser.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type=kind, **groups)
    chosen = dict(plain.plan.steps)["cache"]
    chosen.apply(cell.pipe, cell.plan.cell.sites[0])
    assert torch.equal(cell(), plain())
    assert chosen.verify(cell.pipe, cell.plan.cell.sites[0]).numbers["hooks"] == plain.effect.numbers["hooks"]


class Stream:
    """What diffusers asks of a stream, on the CPU."""

    def __init__(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def stream(self, _: Any) -> Any:
        return contextlib.nullcontext()

    def current_stream(self) -> Stream:
        return self


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("block_level", "first_block"),
        ("block_level", "taylorseer_lite"),
        ("block_level", "faster"),  # the denoiser's own hook
        ("leaf_level", "taylorseer_lite"),
    ],
)
def test_hooks_that_streamed_group_offloading_undoes_are_found_out(
    kind: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay registered, but what they call is no longer the cache's."""
    monkeypatch.setattr(group_offloading, "TorchDeviceBackend", Stream)
    monkeypatch.setattr(group_offloading.ModuleGroup, "_to_cpu", staticmethod(lambda tensor, low: tensor.data))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    plain, cell, cpu = cached(option), Cell(HOME[option]), torch.device("cpu")
    config = group_offloading.GroupOffloadingConfig(
        onload_device=cpu,
        offload_device=cpu,
        offload_type=group_offloading.GroupOffloadingType(kind),
        num_blocks_per_group=1 if kind == "block_level" else None,
        non_blocking=False,
        record_stream=False,
        low_cpu_mem_usage=False,
        stream=Stream(),
    )
    group_offloading._apply_group_offloading(cell.denoiser, config)
    chosen = dict(plain.plan.steps)["cache"]
    chosen.apply(cell.pipe, cell.plan.cell.sites[0])
    registered = cell.denoiser._cache_watch.hooked
    cell()
    assert all(one.in_place for one in registered)
    with pytest.raises(NoEffect, match=r"\d of \d hooks are gone from transformer"):
        chosen.verify(cell.pipe, cell.plan.cell.sites[0])


@pytest.mark.parametrize("option", sorted({*OPTIONS} - {"none"}))
def test_streamed_group_offloading_of_the_denoiser_is_refused(option: str) -> None:
    words = (*tiny(HOME.get(option, FLUX), steps=None), f"cache={option}", "hardware=h100", *SKIPS.get(option, ()))
    for memory in ("group_offload_stream", "group_offload_leaf"):
        (problem,) = plan(*words, f"memory={memory}").problems
        assert problem.keys == (f"cache={option}", f"memory={memory}")
        assert "memory=group_offload" in problem.remedy
    assert plan(*words, "memory=group_offload").problems == ()
    assert plan(*words, "memory=group_offload_stream", "memory.components=[text_encoders,vae]").problems == ()


# --- compiled


COMPILED = [
    ("first_block", "regional", True),
    ("sea", "regional", True),
    ("pab", "regional", False),
    *(
        pytest.param(option, compile, fullgraph, marks=pytest.mark.slow)
        for option, compile, fullgraph in [
            ("mag", "regional", True),
            ("taylorseer_lite", "regional", True),
            ("taylorseer", "regional", False),
            ("faster", "regional", False),
            ("first_block", "regions", True),
            ("sea", "regions", True),
            ("taylorseer", "regions", False),
            ("pab", "default", False),
            ("taylorseer", "default", False),
        ]
    ),
]


@pytest.mark.parametrize(("option", "compile", "fullgraph"), COMPILED)
def test_a_cache_and_compiled_blocks_do_both(option: str, compile: str, fullgraph: bool) -> None:
    whole = f"compile.fullgraph={str(fullgraph).lower()}"
    cell, plain = cached(option, None, f"compile={compile}", "compile.backend=eager", whole), cached(option)
    assert cell.plan.problems == ()
    expected = plain()
    assert (cell() - expected).abs().max() <= 1e-4
    cell()
    effects = cell.effects()
    assert effects["cache"].numbers == plain.effect.numbers
    assert (effects["compile"].numbers["graph_breaks"] == 0) is fullgraph
    if compile != "default":
        assert effects["compile"].numbers["transformer_regions_never_entered"] == 0
    with torch.compiler.set_stance("fail_on_recompile"):
        assert (cell() - expected).abs().max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("option", "graphs"), [("first_block", 3), ("pab", 5)])
def test_many_blocks_share_graphs_beneath_a_cache(option: str, graphs: int) -> None:
    """As many as without a cache, plus the parts around attention; dynamo gives a function up after eight."""
    cell = Cell(FLUX)
    more = {**cell.denoiser.config, "num_layers": 10, "num_single_layers": 10}
    torch.manual_seed(0)
    cell.pipe.transformer = cell.denoiser = type(cell.denoiser).from_config(more).eval()
    site, fullgraph = cell.plan.cell.sites[0], option == "first_block"
    compiled = step("compile", "regional", backend="eager", fullgraph=fullgraph)
    chosen = dict(plan(*tiny(FLUX, steps=None), f"cache={option}", *SKIPS[option]).steps)["cache"]
    compiled.apply(cell.pipe, site)
    chosen.apply(cell.pipe, site)
    cell()
    assert compiled.verify(cell.pipe, site).numbers["graphs"] == graphs
    assert chosen.verify(cell.pipe, site).numbers["skipped"] > 0


@pytest.mark.slow
def test_generated_code_beneath_a_cache() -> None:
    cell, plain = cached("first_block", None, "compile=regional"), cached("first_block")
    expected = plain()
    cell()
    cell()
    with torch.compiler.set_stance("fail_on_recompile"):
        assert (cell() - expected).abs().max() <= 1e-3
    assert cell.effects()["cache"].numbers == plain.effect.numbers
