"""Samplers on UNets and on transformers, and the promise that no sampling step waits for the device."""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import json
import pickle
import re
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import yaml
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionImg2ImgPipeline, UniPCMultistepScheduler
from pydantic import ValidationError
from support.option_steps import CONF, step, values
from support.places import REPO
from support.slow import first_ones
from support.tiny import tiny
from support.tiny_pipelines import SIZE, picture, pipeline, site

from diffopt.config.resolve import compose_requests
from diffopt.errors import NoEffect, Refusal
from diffopt.machine.packages import unmet_packages
from diffopt.models import calls
from diffopt.models.classes import DENOISERS, PIPELINES
from diffopt.models.resolve import PACKAGED
from diffopt.models.sampling import ESSENTIAL
from diffopt.pipeline.build import build_pipelines
from diffopt.recipe.options import option_names
from diffopt.recipe.plan import make_plan
from diffopt.schema.step import Site
from diffopt.steps.scheduler import rehearsal
from diffopt.steps.scheduler.support import OTHERS, SAMPLERS

OPTIONS = sorted(path.stem for path in (CONF / "scheduler").glob("*.yaml") if path.stem != "default")
HERE = [name for name in OPTIONS if not unmet_packages(step("scheduler", name).requires().packages)]
FLOW = [name for name in OPTIONS if name.startswith("flow_")]
DIFFUSION = [name for name in HERE if name not in FLOW and not name.startswith("cogvideox_")]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def plain(name: str):
    """The pipeline with the same sampler, as a user of diffusers would write it."""
    pipe, chosen = pipeline(), step("scheduler", name)
    pipe.scheduler = getattr(diffusers, chosen.class_name).from_config(pipe.scheduler.config, **chosen._given)
    return pipe


class Family:
    """A tiny pipeline of any family, drawn once, that is sampled in several ways."""

    def __init__(self, option: str, *words: str) -> None:
        (request,) = compose_requests([*tiny(option), "hardware=cpu", "measure=quick", *words])
        self.request, self.cell, self.site = request, request.cell, request.cell.sites[0]
        (self.pipe,) = build_pipelines(make_plan(request.cell))
        self.pipe.set_progress_bar_config(disable=True)
        self.own = self.pipe.scheduler

    def draw(self, scheduler: Any = None) -> np.ndarray:
        """All pictures or frames, with this scheduler instead of the one in place."""
        if scheduler is not None:
            self.pipe.scheduler = scheduler
        (output,) = calls.draw_pictures(
            calls.calls_of_models([self.pipe], self.cell.recipe.model.stages, self.cell.workload)
        )
        return np.stack(
            [np.asarray(frame, dtype=float) for frame in (output if isinstance(output, list) else [output])]
        )

    def sample(self, name: str, **changes: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """What the option draws, and the numbers of its proof."""
        chosen = step("scheduler", name, **changes)
        assert chosen.problems(self.site) == ()
        self.pipe.scheduler = self.own
        chosen.apply(self.pipe, self.site)
        drawn = self.draw()
        return drawn, dict(chosen.verify(self.pipe, self.site).numbers)


@functools.cache
def family(option: str, *words: str) -> Family:
    return Family(option, *words)


@pytest.mark.parametrize("name", first_ones(DIFFUSION, 6))
def test_pictures_are_those_of_the_plain_sampler_in_repeated_calls(name):
    pipe, chosen = pipeline(), step("scheduler", name)
    chosen.apply(pipe, site())
    expected = {steps: picture(plain(name), steps) for steps in (3, 4)}
    for steps in (3, 4, 3):
        np.testing.assert_array_equal(picture(pipe, steps), expected[steps])
        assert chosen.verify(pipe, site()).numbers["steps"] == steps


@pytest.mark.parametrize("name", DIFFUSION)
def test_image_to_image_begins_where_the_pipeline_says(name):
    def later(pipe) -> np.ndarray:
        pipe = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        start = torch.linspace(0, 1, SIZE * SIZE * 3).reshape(1, 3, SIZE, SIZE)
        noise = torch.Generator("cpu").manual_seed(3)
        call = {"image": start, "strength": 0.5, "num_inference_steps": 6, "generator": noise, "output_type": "np"}
        return pipe("a fox", **call).images[0]

    pipe, chosen = pipeline(), step("scheduler", name)
    chosen.apply(pipe, site())
    np.testing.assert_array_equal(later(pipe), later(plain(name)))
    numbers = chosen.verify(pipe, site()).numbers
    assert numbers["steps"] == 6
    assert numbers["iterations"] == {"heun": 5, "kdpm2": 5, "pndm": 4}.get(name, 3)


def pickled(scheduler: Any) -> Any:
    return pickle.loads(pickle.dumps(scheduler))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("name", first_ones(["euler", "heun", "dpmpp_2m", "unipc"], 1))
def test_a_copied_sampler_runs_a_schedule_of_its_own(name, copied):
    """As each thread of a server has one, around the same weights; here one call begins and ends within the other."""
    pipe, other, chosen = pipeline(), pipeline(), step("scheduler", name)
    chosen.apply(pipe, site())
    alone = {steps: picture(pipe, steps) for steps in (4, 7)}
    other.scheduler = copied(pipe.scheduler)
    within = []

    def interrupt(_pipe, index, _timestep, _tensors):
        if index == 2:
            within.append(picture(other, 7))
        return {}

    outer = picture(pipe, 4, callback_on_step_end=interrupt)
    np.testing.assert_array_equal(within[0], alone[7])
    np.testing.assert_array_equal(outer, alone[4])
    assert chosen.verify(pipe, site()).numbers["steps"] == 4
    assert chosen.verify(other, site()).numbers["steps"] == 7


@pytest.mark.parametrize("name", [name for name in DIFFUSION if SAMPLERS[step("scheduler", name).class_name].noise])
def test_a_picture_of_a_batch_is_the_one_that_its_seed_draws_alone(name):
    """Also of samplers that draw noise in every step: each picture has a generator of its own."""
    pipe, chosen = pipeline(), step("scheduler", name)
    chosen.apply(pipe, site())
    call = {"num_inference_steps": 3, "height": SIZE, "width": SIZE, "output_type": "np"}
    seeds = [[torch.Generator("cpu").manual_seed(seed)] for seed in (3, 4)]
    alone = [pipe(["a fox"], generator=seed, **call).images[0] for seed in seeds]
    both = pipe(["a fox"] * 2, generator=[torch.Generator("cpu").manual_seed(seed) for seed in (3, 4)], **call).images
    assert np.abs(both - np.stack(alone)).max() <= 1e-4
    assert np.abs(alone[0] - alone[1]).max() > 0.1


@pytest.mark.parametrize("option", ["sd15 img2img", "sd15 inpaint", "sdxl img2img"])
@pytest.mark.parametrize("name", ["ddim", "pndm", "euler", "heun"])
def test_pictures_are_the_same_with_and_without_the_promise(option, name):
    drawn = family(option, "workload.steps=4", "workload.strength=0.5")
    kept, without = (drawn.sample(name, sync_free=promised) for promised in (True, False))
    np.testing.assert_array_equal(kept[0], without[0])
    assert kept[1] == without[1]


@pytest.mark.parametrize("option", ["sd35_medium img2img", "flux_dev img2img"])
def test_image_to_image_begins_there_on_a_transformer_too(option):
    drawn = family(option, "workload.steps=4", "workload.strength=0.5")
    pictures, numbers = drawn.sample("flow_euler")
    np.testing.assert_array_equal(pictures, drawn.draw(FlowMatchEulerDiscreteScheduler.from_config(drawn.own.config)))
    assert numbers == {"steps": 4, "iterations": 2}


ON_TRANSFORMERS = [
    *(("sd35_medium", name) for name in FLOW),
    *(("wan21_t2v_1_3b", name) for name in ("flow_euler", "flow_unipc")),
    *(("flux_dev", name) for name in ("flow_euler", "flow_unipc", "flow_dpmpp_2m")),
    ("flux_schnell", "flow_dpmpp_2m"),  # the pipeline gives a mu that this sampler would assert to be of use
    ("z_image", "flow_unipc"),  # the pipeline gives sigmas as a list
    ("ltx_video", "flow_unipc"),
    *(("cogvideox_5b", name) for name in ("cogvideox_ddim", "cogvideox_dpm", "dpmpp_2m")),
    ("pixart_sigma", "euler"),
]


@pytest.mark.parametrize(("option", "name"), first_ones(ON_TRANSFORMERS, 6))
def test_every_family_is_sampled_by_what_fits_it(option, name):
    drawn = family(option)
    pictures, numbers = drawn.sample(name)
    assert np.isfinite(pictures).all()
    assert pictures.std() > 1
    assert numbers["steps"] == 2
    own = drawn.draw(type(drawn.own).from_config(drawn.own.config))
    same = type(drawn.own).__name__ == step("scheduler", name).class_name
    assert np.array_equal(pictures, own) == same  # the model's own sampler draws the same, another draws another


def test_a_shift_is_taken_over_by_whatever_name_the_class_has_for_it():
    sd3, wan = family("sd35_medium"), family("wan21_t2v_1_3b")
    pictures, _ = sd3.sample("flow_unipc")
    config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0, "solver_order": 2}
    np.testing.assert_array_equal(pictures, sd3.draw(UniPCMultistepScheduler.from_config(sd3.own.config, **config)))
    wan.sample("flow_euler")
    assert wan.own.config.flow_shift == 3.0
    assert wan.pipe.scheduler.config.shift == 3.0
    wan.sample("flow_euler", shift=5.0)
    assert wan.pipe.scheduler.config.shift == 5.0


def test_a_solver_needs_not_be_told_that_the_model_matches_a_flow():
    drawn = family("sd35_medium")
    first, second = (drawn.sample(name)[0] for name in ("flow_unipc", "unipc"))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", ["ddim", "pndm", "euler", "heun", "dpmpp_2m"])
def test_a_step_never_sees_the_timesteps_of_the_device(name, monkeypatch):
    pipe, chosen = pipeline(), step("scheduler", name)
    cls = getattr(diffusers, chosen.class_name)
    seen: list[Any] = []
    original = cls.step
    monkeypatch.setattr(
        cls, "step", lambda self, out, t, *a, **k: (seen.append((t, self)), original(self, out, t, *a, **k))[1]
    )
    chosen.apply(pipe, site())
    picture(pipe, 4)
    shown = pipe.scheduler.timesteps
    assert [float(t) for t, _ in seen] == shown.tolist()
    assert all(t.data_ptr() != shown[i].data_ptr() for i, (t, _) in enumerate(seen))


def test_a_timestep_read_from_the_device_breaks_the_promise():
    pipe, chosen = pipeline(), step("scheduler", "ddim")
    chosen.apply(pipe, site())
    picture(pipe, 3)
    chosen.verify(pipe, site())
    sample = torch.zeros(1, 4, 8, 8)
    pipe.scheduler.step(sample, pipe.scheduler.timesteps[1].clone(), sample)
    with pytest.raises(NoEffect, match="1 timesteps were read from the device"):
        chosen.verify(pipe, site())


def scheduler_of(name: str) -> Any:
    """A scheduler of this class, as the first process that it samples would have it."""
    flow = {"shift": 3.0} if SAMPLERS[name].process == {"flow"} else {}
    return getattr(diffusers, name).from_config({"num_train_timesteps": 1000, **flow})


@pytest.mark.parametrize("name", [name for name, known in SAMPLERS.items() if not unmet_packages(known.packages)])
def test_the_table_says_which_samplers_wait(name):
    """With noise from a generator on the host, as workloads have it; tensors without data stand for the device."""
    if SAMPLERS[name].waits or SAMPLERS[name].noise:
        with pytest.raises((NoEffect, RuntimeError)):
            rehearsal.rehearse_scheduler(scheduler_of(name), "cpu")
    else:
        rehearsal.rehearse_scheduler(scheduler_of(name), "cpu")


def test_a_schedule_on_the_device_makes_the_host_wait(monkeypatch):
    """What the rehearsal would say of a sampler as diffusers leaves it."""
    monkeypatch.setattr(rehearsal, "Schedule", lambda probe, on_the_host: None)
    for name in ("DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"):
        with pytest.raises(NoEffect, match="waits for the device"):
            rehearsal.rehearse_scheduler(scheduler_of(name), "cpu")


def test_so_does_a_schedule_that_a_pipeline_puts_in_its_place():
    pipe, chosen = pipeline(), step("scheduler", "euler")
    chosen.apply(pipe, site())
    picture(pipe, 3)
    pipe.scheduler.timesteps = pipe.scheduler.timesteps.clone()
    pipe.scheduler._step_index = None
    sample = torch.zeros(1, 4, 8, 8)
    pipe.scheduler.step(sample, pipe.scheduler.timesteps[1], sample)
    with pytest.raises(NoEffect, match="read from the device"):
        chosen.verify(pipe, site())


def test_a_sampler_that_ran_no_step_is_found_out():
    pipe, chosen = pipeline(), step("scheduler", "euler")
    chosen.apply(pipe, site())
    with pytest.raises(NoEffect, match="no step"):
        chosen.verify(pipe, site())


@pytest.mark.parametrize("name", ["pndm", "ddim"])
def test_the_models_own_class_must_have_been_put_in_anew(name):
    pipe, chosen = pipeline(), step("scheduler", name)
    pipe.scheduler = getattr(diffusers, chosen.class_name).from_config(pipe.scheduler.config, **chosen._given)
    picture(pipe)
    with pytest.raises(NoEffect):
        chosen.verify(pipe, site())


def test_pndm_steps_once_more():
    pipe, chosen = pipeline(), step("scheduler", "pndm")
    chosen.apply(pipe, site())
    picture(pipe, 3)
    assert chosen.verify(pipe, site()).numbers == {"steps": 3, "iterations": 4}


def test_settings_reach_the_sampler_and_null_keeps_the_models():
    pipe = pipeline()
    chosen = step("scheduler", "euler", use_karras_sigmas=True, timestep_spacing="trailing")
    chosen.apply(pipe, site())
    assert pipe.scheduler.config.use_karras_sigmas
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    assert pipe.scheduler.config.beta_end == 0.012


@pytest.mark.parametrize("name", ["unipc", "euler_ancestral", "dpmpp_sde", "lcm"])
def test_what_waits_cannot_promise_otherwise(name):
    assert step("scheduler", name).problems(site()) == ()
    (reason,) = step("scheduler", name, sync_free=True).problems(site())
    assert "set it to false" in reason


@pytest.mark.parametrize(
    ("option", "name", "reason"),
    [
        ("flux_dev", "ddim", "samples diffusion, but this model is made for flow matching"),
        ("sana_1600m", "heun", "samples diffusion, but this model is made for flow matching"),
        ("pixart_sigma", "flow_euler", "samples flow matching, but this model is made for diffusion"),
        ("sd15", "flow_unipc", "use_flow_sigmas=true: this model is made for diffusion"),
        ("flux_dev", "flow_heun", "FluxPipeline gives its sampler sigmas"),
        ("qwen_image", "flow_dpmpp_2m", "QwenImagePipeline gives its sampler sigmas"),
        ("flux_dev img2img", "flow_dpmpp_2m", "FluxImg2ImgPipeline gives its sampler sigmas"),
        ("sd35_medium", "dpmpp_sde", "no generator, so that no seed holds"),
        ("wan21_t2v_1_3b", "dpmpp_2m_karras", "would sample diffusion"),
        ("sd15", "cogvideox_dpm", "made for CogVideoX"),
    ],
)
def test_a_plan_refuses_what_does_not_fit_the_family(option, name, reason):
    (request,) = compose_requests([*tiny(option), f"scheduler={name}", "hardware=cpu", "measure=quick"])
    told = [text for text in make_plan(request.cell).reasons if f"scheduler={name}" in text]
    assert any(reason in text for text in told)


REFUSED = [
    ("cogvideox_2b", "euler", {}, "has no snr_shift_scale=3.0"),
    ("cogvideox_5b", "pndm", {}, "has no rescale_betas_zero_snr=True"),
    ("deepfloyd_if_i_m", "ddim", {}, "has no variance_type=learned_range"),
    ("flux_dev", "flow_euler", {"shift": 2.0}, "does nothing while the shift follows the size"),
    ("flux_dev", "flow_dpmpp_2m", {"flow_shift": 2.0}, "does nothing while the shift follows the size"),
    ("sd35_medium", "flow_euler", {"solver_order": 2}, "FlowMatchEulerDiscreteScheduler has no such argument"),
]


@pytest.mark.parametrize(("option", "name", "changes", "reason"), REFUSED)
def test_a_sampler_that_would_drop_what_the_model_needs_is_refused(option, name, changes, reason):
    drawn, chosen = family(option), step("scheduler", name, **changes)
    assert any(reason in told for told in chosen.problems(drawn.site))
    drawn.pipe.scheduler = drawn.own
    with pytest.raises(Refusal, match=reason):
        chosen.apply(drawn.pipe, drawn.site)


def test_a_shift_by_size_that_no_pipeline_computes_is_refused_in_words():
    with pytest.raises(Refusal, match=r"WanPipeline gives none; set scheduler\.use_dynamic_shifting=false"):
        family("wan21_t2v_1_3b").sample("flow_euler", use_dynamic_shifting=True)


def test_so_are_sigmas_that_an_unknown_pipeline_gives(monkeypatch):
    unknown = {name: known for name, known in PIPELINES.items() if name != "ZImagePipeline"}
    monkeypatch.setattr("diffopt.models.classes.PIPELINES", unknown)
    with pytest.raises(Refusal, match="ZImagePipeline gives its sampler sigmas, which this one does not take"):
        family("z_image").sample("flow_heun")


def test_deepfloyds_samplers_split_the_predicted_variance():
    assert family("deepfloyd_if_i_m").sample("dpmpp_2m")[1] == {"steps": 2, "iterations": 2}


def test_a_setting_that_the_class_lacks_is_refused():
    with pytest.raises(Refusal, match=r"scheduler\.solver_order=2: EulerDiscreteScheduler has no such argument"):
        step("scheduler", "euler", solver_order=2).apply(pipeline(), site())


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_more_steps_than_a_distilled_schedule_has_are_refused(name):
    def reasons(steps: int) -> list[str]:
        (request,) = compose_requests(["model=tiny", "hardware=cpu", f"scheduler={name}", f"workload.steps={steps}"])
        return make_plan(request.cell).reasons

    assert reasons(50) == []
    assert "takes its steps out of the 50 that a model was distilled from" in reasons(51)[0]
    chosen = step("scheduler", name)
    sampler = getattr(diffusers, chosen.class_name).from_config(pipeline().scheduler.config)
    sampler.set_timesteps(50)
    with pytest.raises(ValueError, match="original"):
        sampler.set_timesteps(51)


def test_an_incompatible_class_is_refused():
    with pytest.raises(Refusal, match="IPNDMScheduler: not compatible with this model's PNDMScheduler"):
        step("scheduler", "euler", class_name="IPNDMScheduler").apply(pipeline(), site())


@pytest.mark.parametrize(
    ("name", "told"),
    [("EulerDiscreteSchedler", r" \(Did you mean EulerDiscreteScheduler\?\)$"), ("NoSuchThing", "$")],
)
def test_a_class_that_diffusers_has_not_is_refused_before_torch(name, told):
    chosen = step("scheduler", "euler", class_name=name)
    (reason,) = chosen.problems(site())
    assert re.search(f"class_name={name}: diffusers has no such sampler{told}", reason)
    with pytest.raises(Refusal, match="no such sampler"):
        chosen.apply(pipeline(), site())


def test_every_class_of_the_installed_diffusers_has_its_place():
    structure = vars(diffusers.schedulers)["_import_structure"]
    there = {name for names in structure.values() for name in names if name.endswith("Scheduler")}
    assert there <= {*SAMPLERS, *OTHERS}
    modules = (diffusers, diffusers.schedulers)  # with stand-ins where packages are missing
    assert all(any(hasattr(module, name) for module in modules) for name in (*SAMPLERS, *OTHERS))
    assert not SAMPLERS.keys() & OTHERS


# what does nothing, or cannot be: of a model, an option, its settings; and what the plan says
IDLE = [
    ("sdxl", "lcm", {"timestep_spacing": "trailing"}, "timestep_spacing=trailing: LCMScheduler never reads it"),
    ("sdxl", "tcd", {"timestep_spacing": "trailing"}, "timestep_spacing=trailing: TCDScheduler never reads it"),
    ("sdxl", "tcd", {"clip_sample": True}, "clip_sample=true: TCDScheduler never reads it"),
    ("cogvideox_2b", "cogvideox_ddim", {"clip_sample": True}, "CogVideoXDDIMScheduler never reads it"),
    ("wan21_t2v_1_3b", "flow_dpmpp_2m", {"timestep_spacing": "trailing"}, "sigmas are those of flow matching"),
    ("wan21_t2v_1_3b", "flow_unipc", {"timestep_spacing": "trailing"}, "sigmas are those of flow matching"),
    ("wan21_t2v_1_3b", "flow_deis", {"timestep_spacing": "trailing"}, "sigmas are those of flow matching"),
    ("sana_1600m", "flow_dpmpp_2m", {"timestep_spacing": "leading"}, "sigmas are those of flow matching"),
    ("flux_dev", "flow_unipc", {"timestep_spacing": "trailing"}, "sigmas are those of flow matching"),
    ("sd15", "dpmpp_2m_karras", {"timestep_spacing": "trailing"}, "those of scheduler.use_karras_sigmas=true"),
    ("sd15", "dpmpp_2m", {"flow_shift": 3.0}, "flow_shift=3: this model matches no flow; set it to null"),
    ("wan21_t2v_1_3b", "flow_unipc", {"use_karras_sigmas": True, "flow_shift": 2.0}, "which it does not shift"),
    ("flux_dev", "flow_euler", {"timestep_spacing": "trailing"}, "has no such argument; set it to null"),
    ("sd15", "dpmpp_2m", {"algorithm_type": "rubbish"}, "has dpmsolver++, sde-dpmsolver++, dpmsolver, sde-"),
    ("sd15", "deis", {"algorithm_type": "dpmsolver"}, "algorithm_type=dpmsolver: DEISMultistepScheduler has deis"),
]


@pytest.mark.parametrize(("option", "name", "changes", "reason"), IDLE)
def test_what_does_nothing_or_cannot_be_is_refused_before_torch(option, name, changes, reason):
    words = [f"scheduler.{key}={str(value).lower()}" for key, value in changes.items()]
    (request,) = compose_requests([*tiny(option), f"scheduler={name}", "hardware=cpu", "measure=quick", *words])
    (told,) = (text for text in make_plan(request.cell).reasons if "scheduler=" in text)
    assert reason in told


@pytest.mark.parametrize(
    ("option", "name", "changes"),
    [
        ("sdxl", "euler", {"timestep_spacing": "trailing", "use_karras_sigmas": True}),  # bounds come from it
        ("sdxl", "tcd", {"clip_sample": False}),  # as it is
        ("sd15", "dpmpp_2m", {"timestep_spacing": "trailing"}),
        ("sd15", "unipc", {"final_sigmas_type": "sigma_min"}),
        ("wan21_t2v_1_3b", "flow_unipc", {"flow_shift": 1.0}),
        ("flux_dev", "flow_euler", {"use_dynamic_shifting": False, "shift": 2.0}),
        ("deepfloyd_if_i_m", "dpmpp_2m", {"algorithm_type": "sde-dpmsolver++", "sync_free": False}),
        ("sd15", "euler", {"class_name": "IPNDMScheduler"}),  # the model's own sampler will tell
    ],
)
def test_what_does_something_is_planned(option, name, changes):
    assert step("scheduler", name, **changes).problems(family_site(option)) == ()


@functools.cache
def family_site(option: str) -> Site:
    (request,) = compose_requests([*tiny(option), "hardware=cpu", "measure=quick"])
    return request.cell.sites[0]


@pytest.mark.parametrize(
    "name", ["dpmpp_2m", *(pytest.param(name, marks=pytest.mark.slow) for name in ("deis", "unipc", "dpmpp_single"))]
)
@pytest.mark.parametrize("steps", [2, 3, 4, 5, 16])
def test_an_order_that_is_never_reached_changes_nothing_and_is_found_out(name, steps):
    """Against the pictures: with too few steps a solver of order 3 draws what one of order 2 does."""
    other = {"class_name": "DPMSolverSinglestepScheduler"} if name == "dpmpp_single" else {}
    drawn, effects = {}, {}
    for order in (1, 2, 3):
        pipe, chosen = pipeline(), step("scheduler", name if not other else "dpmpp_2m", solver_order=order, **other)
        chosen.apply(pipe, site())
        drawn[order] = picture(pipe, steps)
        try:
            effects[order] = chosen.verify(pipe, site()).summary
        except NoEffect as error:
            effects[order] = str(error)
    assert ("too few to reach order 2" in effects[2]) == np.array_equal(drawn[1], drawn[2])
    idle = f"scheduler.solver_order=3: none of {steps} steps reaches that order; take {4 if other else 5} steps or more"
    assert effects[3].startswith(idle) == np.array_equal(drawn[2], drawn[3])
    assert "too few" not in effects[1]


def test_a_value_that_the_class_does_not_know_is_refused():
    with pytest.raises(Refusal, match="no_such_solver"):
        step("scheduler", "dpmpp_2m", algorithm_type="no_such_solver").apply(pipeline(), site())


def test_a_flow_matching_pipeline_is_known_by_its_own_sampler():
    pipe = pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(Refusal, match="made for flow matching"):
        step("scheduler", "ddim").apply(pipe, site())


def test_a_prediction_type_that_it_cannot_sample_is_refused():
    pipe = pipeline()
    pipe.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(Refusal, match="sample prediction"):
        step("scheduler", "pndm").apply(pipe, site())


def test_sigmas_are_spaced_in_one_way():
    with pytest.raises(ValidationError, match="choose one"):
        step("scheduler", "euler", use_karras_sigmas=True, use_exponential_sigmas=True)


def test_every_package_that_a_shipped_sampler_needs_comes_with_diffopt():
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    brought = {re.split(r"[^\w-]", text)[0] for text in project["dependencies"]}
    needed = {package for name in OPTIONS for package in step("scheduler", name).requires().packages}
    assert needed == {"scipy"}  # of lms; beta sigmas are a setting of others
    assert needed <= brought


@pytest.mark.skipif(bool(unmet_packages(["scipy"])), reason="scipy is not here")
def test_beta_sigmas_are_those_of_the_plain_sampler():
    pipe, plain = pipeline(), pipeline()
    step("scheduler", "euler", use_beta_sigmas=True).apply(pipe, site())
    plain.scheduler = diffusers.EulerDiscreteScheduler.from_config(plain.scheduler.config, use_beta_sigmas=True)
    np.testing.assert_array_equal(picture(pipe, 4), picture(plain, 4))


def test_what_needs_scipy_says_so():
    assert step("scheduler", "lms").requires().packages == ("scipy",)
    assert step("scheduler", "euler", use_beta_sigmas=True).requires().packages == ("scipy",)
    assert step("scheduler", "euler").requires().packages == ()


@pytest.mark.skipif(not unmet_packages(["scipy"]), reason="scipy is here")
def test_a_class_whose_packages_are_missing_is_refused_with_the_way_to_get_them():
    with pytest.raises(Refusal, match="pip install 'scipy'"):
        step("scheduler", "lms").apply(pipeline(), site())


SETTINGS = set(values("scheduler", "euler")) - {"kind", "class_name", "sync_free"}


def read_in(cls: type) -> set[str]:
    """Names that the code of a class reads: variables, and what it takes from its config."""
    nodes = [*ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls))))]
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("name", [name for name, known in SAMPLERS.items() if not unmet_packages(known.packages)])
def test_the_table_of_samplers_is_what_the_installed_diffusers_has(name):
    cls, known = getattr(diffusers, name), SAMPLERS[name]
    assert ("sigmas" in inspect.signature(cls.set_timesteps).parameters) == known.sigmas
    arguments = inspect.signature(cls).parameters
    assert ("use_flow_sigmas" in arguments) == known.solves_both
    assert {key for key in (*SETTINGS, *ESSENTIAL) if key in arguments} == known.takes
    assert {key for key in SETTINGS if key in arguments and key not in read_in(cls)} == {*known.ignores}
    if known.noise:
        assert "randn_tensor" in inspect.getsource(inspect.getmodule(cls))


@pytest.mark.parametrize("name", PIPELINES)
def test_the_table_of_pipelines_is_what_the_installed_diffusers_has(name):
    cls, known = getattr(diffusers, name), PIPELINES[name].sampler
    source = inspect.getsource(cls.__call__)
    gives = re.search(r"^ +sigmas = (np\.linspace|get_default)", source, re.MULTILINE)
    spares = "use_flow_sigmas" in source
    assert known.sigmas == ("unless_flow" if gives and spares else "always" if gives else "never")
    assert known.generator == hasattr(cls, "prepare_extra_step_kwargs")


def test_every_pipeline_of_an_option_is_in_the_table():
    named = (values("model", name)["pipelines"] for name in option_names("model"))
    assert {name for tasks in named for name in tasks.values() if name} <= PIPELINES.keys()


def test_denoisers_that_match_a_flow_are_those_whose_schedulers_do():
    found = {}
    for index in PACKAGED.glob("*/model_index.json"):
        parts = json.loads(index.read_text())
        config = json.loads((Path(index).parent / "scheduler" / "scheduler_config.json").read_text())
        denoiser = (parts.get("transformer") or parts["unet"])[1]
        flow = "FlowMatch" in config["_class_name"] or config.get("prediction_type") == "flow_prediction"
        assert found.setdefault(denoiser, flow) == flow
    flows = {name for name, known in DENOISERS.items() if known.process == "flow"}
    assert {name for name, flow in found.items() if flow} == flows


def test_options_differ_from_their_parent_alone():
    """One list of all settings, with what they mean: the others extend it."""
    fields = set(values("scheduler", "euler"))
    for name in OPTIONS:
        own = yaml.safe_load((CONF / "scheduler" / f"{name}.yaml").read_text())
        assert (name == "euler") == ("kind" in own)
        assert set(values("scheduler", name)) == fields
