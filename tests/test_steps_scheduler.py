"""Samplers, and the promise that no sampling step waits for the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionImg2ImgPipeline
from option_steps import step
from tiny_pipelines import SIZE, picture, pipeline, site

from diffopt.errors import NoEffect, Refusal

SAMPLERS = ["euler", "dpmpp_2m", "unipc", "ddim", "pndm"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def plain(name: str):
    """The pipeline with the same sampler, as a user of diffusers would write it."""
    pipe, chosen = pipeline(), step("scheduler", name)
    classes = {c.__name__: c for c in pipe.scheduler.compatibles}
    pipe.scheduler = classes[chosen.class_name].from_config(pipe.scheduler.config, **chosen._arguments())
    return pipe


@pytest.mark.parametrize("name", SAMPLERS)
def test_pictures_are_those_of_the_plain_sampler_in_repeated_calls(name):
    pipe, chosen = pipeline(), step("scheduler", name)
    chosen.apply(pipe, site())
    expected = {steps: picture(plain(name), steps) for steps in (4, 7)}
    for steps in (4, 7, 4):
        np.testing.assert_array_equal(picture(pipe, steps), expected[steps])
        assert chosen.verify(pipe, site()).numbers["steps"] == steps


@pytest.mark.parametrize("name", SAMPLERS)
def test_image_to_image_begins_where_the_pipeline_says(name):
    def later(pipe) -> np.ndarray:
        pipe = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        start = torch.linspace(0, 1, SIZE * SIZE * 3).reshape(1, 3, SIZE, SIZE)
        noise = torch.Generator("cpu").manual_seed(3)
        call = {"image": start, "strength": 0.5, "num_inference_steps": 6, "generator": noise, "output_type": "np"}
        return pipe("a fox", **call).images[0]

    pipe = pipeline()
    step("scheduler", name).apply(pipe, site())
    np.testing.assert_array_equal(later(pipe), later(plain(name)))


@pytest.mark.parametrize("name", ["ddim", "pndm"])
def test_the_table_is_indexed_with_host_numbers(name, monkeypatch):
    pipe, chosen = pipeline(), step("scheduler", name)
    cls = {c.__name__: c for c in pipe.scheduler.compatibles}[chosen.class_name]
    seen: list[object] = []
    original = cls.step
    monkeypatch.setattr(cls, "step", lambda self, out, t, *a, **k: (seen.append(t), original(self, out, t, *a, **k))[1])
    chosen.apply(pipe, site())
    picture(pipe, 3)
    assert seen == pipe.scheduler.timesteps.tolist()
    assert all(type(t) is int for t in seen)


def test_a_timestep_read_from_the_device_breaks_the_promise():
    pipe, chosen = pipeline(), step("scheduler", "ddim")
    chosen.apply(pipe, site())
    picture(pipe, 3)
    chosen.verify(pipe, site())
    sample = torch.zeros(1, 4, 8, 8)
    pipe.scheduler.step(sample, pipe.scheduler.timesteps[1].clone(), sample)
    with pytest.raises(NoEffect, match="read from the device"):
        chosen.verify(pipe, site())


def test_a_begin_index_that_is_not_set_breaks_the_promise():
    pipe, chosen = pipeline(), step("scheduler", "euler")
    chosen.apply(pipe, site())
    pipe.scheduler._begin_index = None
    pipe.scheduler.num_inference_steps = 3
    with pytest.raises(NoEffect, match="begin index"):
        chosen.verify(pipe, site())


def test_a_sampler_that_ran_no_step_is_found_out():
    pipe, chosen = pipeline(), step("scheduler", "euler")
    chosen.apply(pipe, site())
    with pytest.raises(NoEffect, match="no step"):
        chosen.verify(pipe, site())


def test_pndm_calls_the_denoiser_once_more():
    pipe, chosen = pipeline(), step("scheduler", "pndm")
    chosen.apply(pipe, site())
    picture(pipe, 3)
    assert chosen.verify(pipe, site()).numbers == {"steps": 3, "denoiser_calls": 4}


def test_settings_reach_the_sampler_and_null_keeps_the_models():
    pipe = pipeline()
    chosen = step("scheduler", "euler", use_karras_sigmas=True, timestep_spacing="trailing")
    chosen.apply(pipe, site())
    assert pipe.scheduler.config.use_karras_sigmas
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    assert pipe.scheduler.config.beta_end == 0.012


def test_unipc_cannot_promise_it():
    assert step("scheduler", "unipc").problems(site()) == ()
    (reason,) = step("scheduler", "unipc", sync_free=True).problems(site())
    assert "set it to false" in reason


def test_a_setting_that_the_class_lacks_is_refused():
    with pytest.raises(Refusal, match=r"scheduler\.solver_order: EulerDiscreteScheduler has no such argument"):
        step("scheduler", "euler", solver_order=2).apply(pipeline(), site())


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "NoSuchScheduler"])
def test_an_incompatible_or_unknown_class_is_refused(name):
    with pytest.raises(Refusal, match=f"{name}: not compatible with this model's PNDMScheduler"):
        step("scheduler", "euler", class_name=name).apply(pipeline(), site())


def test_a_flow_matching_model_keeps_its_own_sampler():
    pipe = pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(Refusal, match="not compatible"):
        step("scheduler", "ddim").apply(pipe, site())


def test_a_prediction_type_that_it_cannot_sample_is_refused():
    pipe = pipeline()
    pipe.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(Refusal, match="sample prediction"):
        step("scheduler", "pndm").apply(pipe, site())
