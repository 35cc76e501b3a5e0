"""Offloading: what moves, when, and how that is proven. On a GPU that is not there; see stand_in_gpu.py."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.option_steps import step
from support.stand_in_gpu import CPU, place_on_host, stand_in_gpu
from support.tiny import families, tiny
from support.tiny_pipelines import picture, pipeline, site, xl_pipeline, xl_site
from support.tolerances import EXACT

from diffopt.config.resolve import compose_requests
from diffopt.errors import NoEffect, Refusal
from diffopt.models import calls
from diffopt.pipeline.build import build_pipelines
from diffopt.recipe.plan import Plan, make_plan
from diffopt.schema.step import Order, Step, Trait
from diffopt.steps.components import parts

OFFLOADS = ("model_offload", "sequential_offload", "group_offload")
on_gpu = functools.partial(site, device="cuda")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return picture(pipeline())


def offload(name: str) -> Step:
    """An option; ``leaf`` is group_offload layer by layer, without the stream that its own option has."""
    if name == "leaf":
        return step("memory", "group_offload", offload_type="leaf_level", num_blocks_per_group=None)
    return step("memory", name)


def movable(pipe: Any = None) -> Any:
    pipe = pipe or pipeline()
    for part in parts(pipe).values():
        place_on_host(part)
    return pipe


def where(pipe: Any) -> dict[str, set[str]]:
    return {name: {weight.device.type for weight in part.parameters()} for name, part in parts(pipe).items()}


def devices_at(module: torch.nn.Module, seen: list[str]) -> None:
    """Note where the weights of a layer are whenever it computes."""
    layer = next(part for part in module.modules() if isinstance(part, torch.nn.Linear))
    forward = layer.forward

    def noting(x: torch.Tensor) -> Any:
        seen.append(layer.weight.device.type)
        return forward(x)

    layer.forward = noting


def test_the_stand_in_tells_devices_apart():
    layer = torch.nn.Linear(2, 2)
    place_on_host(layer)
    with stand_in_gpu():
        x = torch.ones(1, 2, device="cuda")
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            layer(x)
        layer.to("cuda")
        assert layer.weight.device == layer(x).device == x.device
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            layer(x).numpy()
        assert layer(x).cpu().numpy().shape == (1, 2)


@pytest.mark.parametrize("name", [*OFFLOADS, "leaf"])
def test_weights_come_for_their_turn_and_leave(name, reference):
    pipe, chosen = movable(), offload(name)
    computed: list[list[str]] = [[], [], []]
    for part, seen in zip((pipe.text_encoder, pipe.unet, pipe.vae.decoder), computed, strict=True):
        devices_at(part, seen)
    with stand_in_gpu():
        chosen.apply(pipe, on_gpu())
        waiting = {"meta"} if chosen.kind == "sequential_offload" else {"cpu"}
        for _ in range(2):
            assert set().union(*where(pipe).values()) == waiting
            assert np.abs(picture(pipe) - reference).max() <= EXACT
        assert set().union(*where(pipe).values()) == waiting
        effect = chosen.verify(pipe, on_gpu())
    assert all(seen and set(seen) == {"cuda"} for seen in computed)
    assert effect.summary
    assert all(isinstance(number, int) for number in effect.numbers.values())


def test_resident_has_all_weights_on_the_gpu(reference):
    pipe, resident = movable(), step("memory", "resident")
    with stand_in_gpu():
        resident.apply(pipe, on_gpu())
        assert np.abs(picture(pipe) - reference).max() <= EXACT
        assert set().union(*where(pipe).values()) == {"cuda"}
        assert resident.verify(pipe, on_gpu()).numbers["bytes"] > 0


def test_model_offload_tells_what_is_there_while_denoising():
    pipe, chosen = movable(xl_pipeline()), step("memory", "model_offload")
    with stand_in_gpu():
        chosen.apply(pipe, xl_site(device="cuda"))
        picture(pipe)
        numbers = chosen.verify(pipe, xl_site(device="cuda")).numbers
    denoiser = sum(4 * weight.numel() for weight in (*pipe.unet.parameters(), *pipe.unet.buffers()))
    assert numbers["bytes_denoising"] == denoiser
    assert numbers["bytes"] > denoiser


def test_sequential_offload_counts_every_copy_of_a_weight():
    pipe, chosen = movable(), step("memory", "sequential_offload")
    with stand_in_gpu():
        chosen.apply(pipe, on_gpu())
        picture(pipe, steps=2)
        first = chosen.verify(pipe, on_gpu()).numbers
        picture(pipe, steps=2)
        second = chosen.verify(pipe, on_gpu()).numbers
    calls = 3  # PNDM calls the denoiser once more than there are steps
    assert first["unet"] == calls * len(list(pipe.unet.parameters()))
    assert second["unet"] == 2 * first["unet"]


def test_groups_are_as_large_as_asked():
    small, large = (step("memory", "group_offload", num_blocks_per_group=blocks) for blocks in (1, 2))
    found = []
    for chosen in (small, large):
        pipe = movable()
        with stand_in_gpu():
            chosen.apply(pipe, on_gpu())
            picture(pipe)
            found.append(chosen.verify(pipe, on_gpu()).numbers)
    one, two = found
    assert (one["unet_groups"], two["unet_groups"]) == (5, 3)  # of 2 blocks down, 2 blocks up; the rest is one more
    for numbers in (one, two):
        assert numbers["unet_moves"] == 3 * numbers["unet_groups"]
        assert numbers["unet_largest_group_bytes"] < numbers["unet_bytes"]
    assert one["vae_groups"] == two["vae_groups"] > 20  # layer by layer


@pytest.mark.parametrize(
    ("model", "blocks", "refused"),
    [
        ("qwen_image", 1, False),  # single blocks are the least there is
        ("qwen_image", 100, True),
        ("sd15", 2, False),  # of two lists, one after the other
        ("sd15", 100, True),
    ],
)
def test_groups_that_divide_nothing_are_refused(model, blocks, refused):
    (request,) = compose_requests([*tiny(model), "hardware=cpu"])
    (pipe,), (place,) = build_pipelines(make_plan(request.cell)), request.cell.sites
    chosen = step("memory", "group_offload", num_blocks_per_group=blocks, components=["denoiser"])
    if not refused:
        chosen.apply(pipe, place)
        return
    with pytest.raises(Refusal, match=rf"^memory.num_blocks_per_group={blocks}: \w+ has at most \d+ blocks in a row"):
        chosen.apply(pipe, place)


def test_a_denoiser_without_lists_of_blocks_is_refused():
    pipe = pipeline()
    pipe.unet.down_blocks = torch.nn.ModuleDict({str(i): part for i, part in enumerate(pipe.unet.down_blocks)})
    pipe.unet.up_blocks = torch.nn.ModuleDict({str(i): part for i, part in enumerate(pipe.unet.up_blocks)})
    with pytest.raises(Refusal, match=r"^memory.offload_type=block_level: unet .* has no list of blocks"):
        step("memory", "group_offload").apply(pipe, site())


def test_parts_that_no_group_is_made_of_stay_on_the_gpu(reference):
    pipe, chosen = movable(), step("memory", "group_offload", components=["denoiser"])
    with stand_in_gpu():
        chosen.apply(pipe, on_gpu())
        assert np.abs(picture(pipe) - reference).max() <= EXACT
        assert where(pipe) == {"unet": {"cpu"}, "text_encoder": {"cuda"}, "vae": {"cuda"}}
        assert not any(name.startswith("vae") for name in chosen.verify(pipe, on_gpu()).numbers)


@pytest.mark.parametrize("kind", ["AutoencoderKL", "a VAE without a list of its blocks"])
def test_a_vae_moves_by_layers_since_decode_passes_by_hooks_around_it(kind, reference, monkeypatch):
    pipe = movable()
    if kind != "AutoencoderKL":
        monkeypatch.setattr(type(pipe.vae), "_group_offload_block_modules", None)
    computed: list[str] = []
    devices_at(pipe.vae.decoder, computed)
    chosen = step("memory", "group_offload")
    with stand_in_gpu():
        chosen.apply(pipe, on_gpu())
        assert where(pipe)["vae"] == {"cpu"}
        assert np.abs(picture(pipe) - reference).max() <= EXACT
        assert set(computed) == {"cuda"}
        assert where(pipe)["vae"] == {"cpu"}
        numbers = chosen.verify(pipe, on_gpu()).numbers
    assert numbers["vae_groups"] > 20
    assert numbers["vae_largest_group_bytes"] < numbers["vae_bytes"] / 4


@pytest.mark.parametrize("name", OFFLOADS)
def test_a_step_that_did_nothing_is_found_out(name, monkeypatch):
    pipe, chosen = pipeline(), step("memory", name)
    monkeypatch.setattr(type(chosen), "apply", lambda self, pipe, site: None)
    chosen.apply(pipe, site())
    picture(pipe)
    with pytest.raises(NoEffect, match=f"^memory={name}: "):
        chosen.verify(pipe, site())


def test_hooks_that_were_taken_off_are_found_out():
    pipe, chosen = pipeline(), step("memory", "model_offload")
    chosen.apply(pipe, site())
    picture(pipe)
    chosen.verify(pipe, site())
    pipe.remove_all_hooks()
    with pytest.raises(NoEffect, match="has no hook that moves it"):
        chosen.verify(pipe, site())


@pytest.mark.parametrize("name", OFFLOADS)
def test_weights_that_came_back_to_stay_are_found_out(name):
    pipe, chosen = movable(), step("memory", name)
    with stand_in_gpu():
        chosen.apply(pipe, on_gpu())
        picture(pipe)
        layer = pipe.unet.conv_in
        layer._parameters["weight"] = torch.nn.Parameter(torch.zeros(1).to("cuda"), requires_grad=False)
        with pytest.raises(NoEffect, match="unet"):
            chosen.verify(pipe, on_gpu())


@pytest.mark.parametrize("name", OFFLOADS)
def test_a_pipeline_that_never_ran_proves_nothing(name):
    pipe, chosen = movable(), step("memory", name)
    with stand_in_gpu():
        chosen.apply(pipe, on_gpu())
        with pytest.raises(NoEffect, match="step was seen|ever brought|ever moved"):
            chosen.verify(pipe, on_gpu())


def test_a_denoiser_that_stayed_away_is_found_out(monkeypatch):
    pipe, chosen = movable(), step("memory", "model_offload")
    with stand_in_gpu():
        chosen.apply(pipe, on_gpu())
        pipe.scheduler.set_timesteps(2)
        pipe.scheduler.step(torch.zeros(1), pipe.scheduler.timesteps[0], torch.zeros(1))
        with pytest.raises(NoEffect, match="^memory=model_offload: 0 of .* bytes of unet were on cuda"):
            chosen.verify(pipe, on_gpu())


def test_a_class_that_cannot_is_refused_by_name(monkeypatch):
    pipe = pipeline()
    monkeypatch.setattr(type(pipe), "model_cpu_offload_seq", None)
    with pytest.raises(Refusal, match=r"^memory=model_offload: StableDiffusionPipeline: .*model_cpu_offload_seq"):
        step("memory", "model_offload").apply(pipe, site())
    monkeypatch.setattr(type(pipe.unet), "_supports_group_offloading", False)
    with pytest.raises(Refusal, match=r"^memory=group_offload: unet: UNet2DConditionModel does not support"):
        step("memory", "group_offload").apply(pipeline(), site())


def test_streams_need_a_gpu_and_say_so():
    with pytest.raises(Refusal, match="requires an onload device whose backend implements streams"):
        step("memory", "group_offload_stream").apply(pipeline(), site())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_blocks_per_group": None}, "memory.num_blocks_per_group is a number for memory.offload_type=block_level"),
        ({"offload_type": "leaf_level"}, "null for leaf_level"),
        ({"use_stream": True, "num_blocks_per_group": 2}, "set memory.num_blocks_per_group=1"),
        ({"record_stream": True}, "memory.record_stream=true does nothing without memory.use_stream=true"),
        ({"low_cpu_mem_usage": True}, "memory.low_cpu_mem_usage=true does nothing without memory.use_stream=true"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, says):
    with pytest.raises(ValidationError, match=re.escape(says)):
        step("memory", "group_offload", **changes)


@pytest.mark.parametrize("name", [pytest.param("sequential_offload", marks=pytest.mark.slow), "leaf"])
def test_layerwise_casting_comes_first_and_keeps_its_values(name):
    def cast(pipe):
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        return pipe

    reference, pipe = picture(cast(pipeline())), cast(movable())
    chosen = offload(name)
    with stand_in_gpu():
        chosen.apply(pipe, on_gpu())
        for _ in range(2):
            assert np.abs(picture(pipe) - reference).max() <= EXACT
        chosen.verify(pipe, on_gpu())
    assert {weight.dtype for weight in pipe.unet.parameters()} == {torch.float8_e4m3fn, torch.float32}


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("model_offload", "int8_dynamic"),
        ("group_offload", "int8_weight"),
        ("leaf", "fp8_weight"),
        ("leaf", "int8_weight"),
    ],
)
def test_hooks_pass_quantized_weights(name, quant):
    """On the CPU, where nothing moves but the hooks are called; accelerate's sequential ones are in the next test."""
    reference, pipe = pipeline(), pipeline()
    step("quant", quant).apply(reference, site())
    step("quant", quant).apply(pipe, site())
    chosen = offload(name)
    chosen.apply(pipe, site())
    expected = picture(reference)
    for _ in range(2):
        assert np.abs(picture(pipe) - expected).max() <= EXACT
    chosen.verify(pipe, site())
    step("quant", quant).verify(pipe, site())


@pytest.mark.parametrize("quant", ["int8_dynamic", "fp8_weight"])
def test_sequential_hooks_take_quantized_weights_apart_and_together(quant):
    """They wait on the meta device as what they are (https://github.com/huggingface/accelerate/pull/3085)."""
    from accelerate import cpu_offload

    reference, pipe = pipeline(), pipeline()
    step("quant", quant).apply(reference, site())
    step("quant", quant).apply(pipe, site())
    cpu_offload(pipe.unet, CPU)
    expected = picture(reference)
    for _ in range(2):
        assert np.abs(picture(pipe) - expected).max() <= EXACT
    assert {weight.device.type for weight in pipe.unet.parameters()} == {"meta"}
    step("quant", quant).verify(pipe, site())


def test_the_size_of_quantized_weights_is_what_is_stored():
    pipe, resident = pipeline(torch.bfloat16), step("memory", "resident")
    before = resident.verify(pipe, site()).numbers["bytes"]
    step("quant", "int8_weight", min_features=16).apply(pipe, site())
    chosen = [part.weight for part in pipe.unet.modules() if hasattr(getattr(part, "weight", None), "qdata")]
    saved = sum(weight.numel() for weight in chosen)  # one byte of two, but for the scales
    assert before - saved < resident.verify(pipe, site()).numbers["bytes"] < before - 0.9 * saved


@pytest.fixture
def graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "compile", "fullgraph", "graph_breaks"),
    [
        ("model_offload", "regional", True, 0),  # the hooks are outside of the blocks
        pytest.param("model_offload", "default", False, 2, marks=pytest.mark.slow),  # before and after
        pytest.param("group_offload", "regional", False, None, marks=pytest.mark.slow),
        pytest.param("group_offload", "default", False, None, marks=pytest.mark.slow),
    ],
)
def test_compiled_code_stays_when_hooks_come_and_go(graphs, reference, name, compile, fullgraph, graph_breaks):
    """accelerate puts new hooks on after each call; a recompile for that would be an error in the timed part."""
    pipe, chosen = pipeline(), step("memory", name)
    compiled = step("compile", compile, backend="eager", fullgraph=fullgraph)
    for one in sorted((chosen, compiled), key=lambda s: s.order):
        one.apply(pipe, site())
    picture(pipe)
    picture(pipe)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert np.abs(picture(pipe) - reference).max() <= EXACT
    chosen.verify(pipe, site())
    numbers = compiled.verify(pipe, site()).numbers
    if graph_breaks is not None:
        assert (numbers["graphs"], numbers["graph_breaks"]) == (1, graph_breaks)


def pictures(model: str, chosen: Step) -> tuple[np.ndarray, np.ndarray, str]:
    """Of a tiny family: without offloading, in a second call with it, and what the step proves."""
    (request,) = compose_requests([*tiny(model), "hardware=cpu"])
    made = make_plan(request.cell)
    expected = np.array(
        calls.draw_pictures(
            calls.calls_of_models(build_pipelines(made), request.cell.recipe.model.stages, request.cell.workload)
        )[0]
    )
    pipes = [movable(pipe) for pipe in build_pipelines(made)]
    hardware = request.cell.recipe.hardware.model_copy(update={"device": "cuda"})
    sites = [dataclasses.replace(one, hardware=hardware) for one in request.cell.sites]
    with stand_in_gpu():
        for pipe, place in zip(pipes, sites, strict=True):
            chosen.apply(pipe, place)
        for _ in range(2):
            drawn = np.array(
                calls.draw_pictures(
                    calls.calls_of_models(pipes, request.cell.recipe.model.stages, request.cell.workload)
                )[0]
            )
        effects = [chosen.verify(pipe, place) for pipe, place in zip(pipes, sites, strict=True)]
    return expected, drawn, effects[0].summary


@pytest.mark.parametrize("model", ["sana_1600m", "wan21_t2v_1_3b"])
def test_groups_of_transformers(model):
    expected, drawn, _ = pictures(model, step("memory", "group_offload"))
    assert np.array_equal(drawn, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFLOADS)
@pytest.mark.parametrize("model", families())
def test_every_family_can_be_offloaded(model, name):
    (request,) = compose_requests([*tiny(model), "hardware=cpu"])
    chosen = step("memory", name)
    if name == "group_offload" and any(chosen.problems(one) for one in request.cell.sites):
        chosen = step("memory", name, components=["denoiser"])
    expected, drawn, _ = pictures(model, chosen)
    assert np.abs(drawn.astype(int) - expected).max() <= 1  # of 255


def plan(*overrides: str) -> Plan:
    (request,) = compose_requests(["model=sdxl", "hardware=rtx4090", "precision=fp16", *overrides])
    return make_plan(request.cell)


def test_offloading_comes_before_compiling_and_needs_a_gpu():
    for name in OFFLOADS:
        assert step("memory", name).order == Order.OFFLOAD < Order.COMPILE
        assert plan(f"memory={name}").status == "ok"
        (problem,) = plan(f"memory={name}", "hardware=cpu").problems
        assert problem.keys == (f"memory={name}", "hardware=cpu")


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["memory=model_offload", "compile=regional"], None),
        (["memory=model_offload", "compile=default"], ("memory=model_offload", "compile=default")),
        (["memory=model_offload", "compile=default", "compile.fullgraph=false"], None),
        (
            ["memory=model_offload", "compile=default", "compile.components=[vae_decode]"],
            ("memory=model_offload", "compile=default"),
        ),
        (["memory=group_offload", "compile=regional"], ("memory=group_offload", "compile=regional")),
        (["memory=group_offload", "compile=regional", "compile.fullgraph=false"], None),
        (["memory=sequential_offload", "quant=int8_weight"], None),
        (["memory=group_offload_stream", "quant=int8_weight"], None),
        (
            ["memory=group_offload_stream", "memory.low_cpu_mem_usage=true", "quant=int8_weight"],
            ("memory=group_offload_stream", "quant=int8_weight"),
        ),
    ],
)
def test_meetings_with_compile_and_quantization(words, keys):
    assert [problem.keys for problem in plan(*words).problems] == ([] if keys is None else [keys])


def test_what_moves_cannot_be_replayed_by_cuda_graphs():
    for name in OFFLOADS:
        found = {problem.keys for problem in plan(f"memory={name}", "compile=reduce_overhead").problems}
        assert (f"memory={name}", "compile=reduce_overhead") in found


def test_compiling_layers_one_by_one_is_noted():
    words = ("memory=group_offload_leaf", "compile=default", "compile.fullgraph=false")
    assert any("hooks part every layer" in note for note in plan(*words).notes)
    assert not any("hooks part" in note for note in plan("memory=group_offload", *words[1:]).notes)
    assert Trait.HOOKS_LAYERS not in step("memory", "group_offload_leaf", components=["text_encoders"]).traits


def test_what_is_on_the_device_at_least():
    weights = {"denoiser": 10.0, "text_encoders": 5.0, "vae": 1.0}
    resident, model, sequential, group = (step("memory", name) for name in ("resident", *OFFLOADS))
    assert [one.on_device(weights, "denoiser") for one in (resident, model, sequential, group)] == [16, 10, 0, 0]
    assert [one.on_device(weights, None) for one in (resident, model, sequential, group)] == [16, 0, 0, 0]
    assert step("memory", "group_offload", components=["denoiser"]).on_device(weights, "vae") == 6
