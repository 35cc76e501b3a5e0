"""torch.compile: what is compiled, counted and promised. ``backend: eager`` captures graphs without generating code."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from option_steps import apply, step
from pydantic import ValidationError
from tiny_pipelines import picture, pipeline, site
from torch._dynamo.utils import counters

from diffopt.errors import NoEffect, Refusal
from diffopt.step import Trait
from diffopt.steps import compiled_call
from diffopt.steps.compile import Inductor, inductor_options
from diffopt.steps.compiled_call import CompiledCall, proof, with_cuda_graphs

ALL = ["denoiser", "vae_decode", "text_encoders"]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch.set_num_threads(1)
    duck_shape = torch.fx.experimental._config.use_duck_shape
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch.fx.experimental._config.use_duck_shape = duck_shape


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return picture(pipeline())


class BreakingProcessor(AttnProcessor2_0):
    def __call__(self, *args, **kwargs):
        torch._dynamo.graph_break()
        return super().__call__(*args, **kwargs)


def test_each_component_is_one_graph(reference):
    pipe, chosen = pipeline(), step("compile", "default", backend="eager", components=ALL)
    chosen.apply(pipe, site())
    for _ in range(2):
        assert np.abs(picture(pipe) - reference).max() <= 1e-4
    numbers = chosen.verify(pipe, site()).numbers
    assert numbers == {"graphs": 3, "graph_breaks": 0, "unet": 1, "vae.decode": 1, "text_encoder": 1}
    assert type(pipe.unet).__name__ == "UNet2DConditionModel"
    assert pipe.unet.config.in_channels == 4


def test_repeated_blocks_are_compiled_alone(reference):
    pipe, chosen = pipeline(), step("compile", "regional", backend="eager")
    chosen.apply(pipe, site())
    assert np.abs(picture(pipe) - reference).max() <= 1e-4
    numbers = chosen.verify(pipe, site()).numbers
    assert (numbers["unet_regions"], numbers["unet_regions_never_entered"]) == (4, 0)
    assert 1 <= numbers["graphs"] < 4


def test_regions_cover_a_unet_and_keep_its_last_norm_out(reference):
    pipe, chosen = pipeline(), step("compile", "regions", backend="eager")
    chosen.apply(pipe, site())
    assert np.abs(picture(pipe) - reference).max() <= 1e-4
    effect = chosen.verify(pipe, site())
    entered, never = effect.numbers["unet_regions"], effect.numbers["unet_regions_never_entered"]
    assert 10 <= entered <= effect.numbers["graphs"] + 4, "equal blocks share graphs, of which this UNet has few"
    assert effect.summary.startswith(f"{entered} of {entered + never} regions entered, compiled into ")
    assert type(pipe.unet.conv_norm_out) is torch.nn.GroupNorm


def test_a_region_that_is_never_entered_is_not_counted():
    pipe, chosen = pipeline(), step("compile", "regions", backend="eager")
    pipe.unet.add_module("unused", torch.nn.Linear(2, 2))
    chosen.apply(pipe, site())
    picture(pipe)
    before = chosen.verify(pipe, site()).numbers
    assert before["unet_regions_never_entered"] >= 1
    pipe.unet.unused(torch.zeros(1, 2))
    pipe.unet.unused(torch.zeros(1, 2))
    after = chosen.verify(pipe, site()).numbers
    assert after["unet_regions"] == before["unet_regions"] + 1, "entering twice counts once"


@pytest.mark.slow
def test_dynamic_shapes_do_not_compile_again_for_another_size():
    pipe, chosen = pipeline(), step("compile", "dynamic", backend="eager")
    chosen.apply(pipe, site())
    assert not torch.fx.experimental._config.use_duck_shape
    for height, width in ((32, 32), (32, 40), (48, 24)):
        pipe("a fox", num_inference_steps=1, height=height, width=width, output_type="latent")
    assert chosen.verify(pipe, site()).numbers["graphs"] == 1


def test_compiling_goes_with_everything_before_it():
    pipe = pipeline()
    names = {
        "fuse": "qkv",
        "quant": "int8_dynamic",
        "attention": "math",
        "layout": "channels_last",
        "scheduler": "pndm",
    }
    steps = [step(group, name) for group, name in names.items()]
    steps.append(step("compile", "default", backend="eager", components=["denoiser", "vae_decode"]))
    apply(pipe, site(), *steps)
    picture(pipe)
    effects = [one.verify(pipe, site()) for one in steps]
    assert effects[-1].numbers["graph_breaks"] == 0
    assert effects[-1].numbers["graphs"] == 2


@pytest.mark.parametrize("name", ["default", "regional", "regions"])
def test_a_pipeline_that_was_not_compiled_is_found_out(name):
    pipe = pipeline()
    picture(pipe)
    with pytest.raises(NoEffect, match="compile"):
        step("compile", name).verify(pipe, site())


@pytest.mark.parametrize("name", ["default", "regional", "regions"])
def test_compiled_but_never_called_is_found_out(name):
    pipe, chosen = pipeline(), step("compile", name, backend="eager")
    chosen.apply(pipe, site())
    with pytest.raises(NoEffect, match="never called"):
        chosen.verify(pipe, site())


def test_zero_graphs_are_found_out():
    pipe, chosen = pipeline(), step("compile", "default", backend="eager")
    chosen.apply(pipe, site())
    with torch.compiler.set_stance("force_eager"):
        picture(pipe)
    with pytest.raises(NoEffect, match="0 graphs in 3 calls of unet"):
        chosen.verify(pipe, site())


def breaking_pipeline():
    pipe = pipeline()
    next(m for m in pipe.unet.modules() if isinstance(m, Attention)).set_processor(BreakingProcessor())
    return pipe


def test_graph_breaks_are_counted_with_their_places():
    pipe, chosen = breaking_pipeline(), step("compile", "default", backend="eager", fullgraph=False)
    chosen.apply(pipe, site())
    picture(pipe, 1)
    numbers = chosen.verify(pipe, site()).numbers
    assert numbers["graph_breaks"] >= 1
    assert "test_steps_compile.py:" in numbers["graph_break_places"]


def test_a_graph_break_under_fullgraph_is_an_error():
    pipe = breaking_pipeline()
    step("compile", "default", backend="eager").apply(pipe, site())
    with pytest.raises(torch._dynamo.exc.Unsupported):
        picture(pipe, 1)


def test_a_model_without_repeated_blocks_is_refused():
    pipe = pipeline()
    pipe.unet._repeated_blocks = []
    with pytest.raises(Refusal, match="regional: unet"):
        step("compile", "regional").apply(pipe, site())


@pytest.mark.parametrize("name", ["regional", "regions"])
@pytest.mark.parametrize("component", ["vae", "text_encoders"])
def test_parts_of_what_is_not_entered_whole_are_not_offered(name, component):
    with pytest.raises(ValidationError, match="components"):
        step("compile", name, components=["denoiser", component])


def test_a_model_without_vae_has_no_decoder_to_compile():
    assert step("compile", "max_autotune").problems(site(vae=None)) == ("compile.components=vae: model toy has none",)


def test_a_mode_is_spelt_out_beside_options():
    none = Inductor(**dict.fromkeys(Inductor.model_fields))
    assert inductor_options("default", none) is None
    assert inductor_options("reduce-overhead", none) == {"triton.cudagraphs": True}
    autotune = step("compile", "max_autotune")
    merged = inductor_options(autotune.mode, autotune.options)
    assert merged["max_autotune"]
    assert merged["triton.cudagraphs"]
    assert merged["conv_1x1_as_mm"]
    assert merged["epilogue_fusion"] is False


def test_every_inductor_option_exists():
    from torch._inductor import config

    assert set(Inductor.model_fields) <= set(config.get_config_copy())


@pytest.mark.parametrize("name", Inductor.model_fields)
def test_every_inductor_option_is_read_by_inductor(name):
    """A deprecated one is still accepted, and ignored (use_mixed_mm)."""
    folder = Path(torch._inductor.__file__).parent
    read = re.compile(rf"config\.{name}\b|config\.patch.*\b{name}\b")
    assert any(read.search(path.read_text()) for path in folder.rglob("*.py") if path.name != "config.py")


def test_cuda_graphs_are_claimed_on_cuda_alone():
    graphs = {name for name in ("default", "reduce_overhead", "max_autotune", "dynamic") if claims(name, "cuda")}
    assert graphs == {"reduce_overhead", "max_autotune"}
    assert not claims("max_autotune", "cpu")
    assert Trait.CUDA_GRAPHS not in step("compile", "regional").traits


def claims(name: str, device: str) -> bool:
    return Trait.CUDA_GRAPHS in step("compile", name).traits_on(site(device=device).hardware)


def test_fullgraph_is_promised_only_where_asked():
    assert step("compile", "default").traits == {Trait.GENERATES_CODE, Trait.FULLGRAPH}
    assert step("compile", "default", fullgraph=False).traits == {Trait.GENERATES_CODE}


@pytest.mark.parametrize("name", ["default", "regional", "regions"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_backend_that_only_captures_generates_no_code(name, backend):
    assert step("compile", name, backend=backend).traits == {Trait.FULLGRAPH}


class Inductors:
    """Stands for inductor's CUDA graphs: each function records in its second call, or is skipped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded = 0
        counters["inductor"]["cudagraph_skips"] = 0
        monkeypatch.setattr(compiled_call, "recorded_cuda_graphs", lambda: self.recorded)

    def function(self, *, recorded: bool) -> CompiledCall:
        calls = itertools.count(1)

        def run() -> None:
            first = next(calls)
            counters["stats"]["unique_graphs"] += first == 1
            counters["inductor"]["cudagraph_skips"] += first == 1 and not recorded
            self.recorded += first == 2 and recorded

        return CompiledCall(run, cuda_graphs=True)


def test_cuda_graphs_are_proved_for_each_component(monkeypatch):
    inductor = Inductors(monkeypatch)
    calls = {"unet": inductor.function(recorded=True), "vae.decode": inductor.function(recorded=True)}
    for call in (*calls.values(), calls["unet"]):
        call()
    with pytest.raises(NoEffect, match=r"no CUDA graph of vae.decode was recorded in 1 calls"):
        with_cuda_graphs(proof(calls, fullgraph=True), calls)
    calls["vae.decode"]()
    effect = with_cuda_graphs(proof(calls, fullgraph=True), calls)
    assert effect.summary.endswith("2 CUDA graphs")
    assert (effect.numbers["unet_cuda_graphs"], effect.numbers["vae.decode_cuda_graphs"]) == (1, 1)


def test_a_component_that_inductor_skipped_is_found_out(monkeypatch):
    inductor = Inductors(monkeypatch)
    calls = {"unet": inductor.function(recorded=True), "vae.decode": inductor.function(recorded=False)}
    for call in (*calls.values(), *calls.values()):
        call()
    assert inductor.recorded == 1
    with pytest.raises(NoEffect, match=r"vae.decode was recorded in 2 calls .*, inductor skipped 1"):
        with_cuda_graphs(proof(calls, fullgraph=True), calls)


def test_recorded_cuda_graphs_are_none_without_cuda():
    assert compiled_call.recorded_cuda_graphs() == 0


def test_recorded_cuda_graphs_are_counted_through_the_tree(monkeypatch):
    from torch._inductor import cudagraph_trees

    def node(*children):
        return SimpleNamespace(children={i: [child] for i, child in enumerate(children)})

    manager = SimpleNamespace(roots={0: [node(node(), node(node()))], 1: [node()]})
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(cudagraph_trees, "get_manager", lambda device, create_if_none_exists: manager)
    assert compiled_call.recorded_cuda_graphs() == 5


def test_outputs_are_copies_where_cuda_graphs_replay():
    kept = torch.zeros(2)
    assert CompiledCall(lambda: (kept, "x"), cuda_graphs=False)()[0] is kept
    copy, word = CompiledCall(lambda: (kept, "x"), cuda_graphs=True)()
    assert copy is not kept
    assert word == "x"


def test_a_backend_that_generates_no_code_takes_no_tuning():
    with pytest.raises(ValidationError, match="generates no code"):
        step("compile", "max_autotune", backend="eager")


@pytest.mark.parametrize("name", ["regional", "regions"])
def test_parts_take_no_mode_with_cuda_graphs(name):
    with pytest.raises(ValidationError, match="mode"):
        step("compile", name, mode="reduce-overhead")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["regional", "max_autotune"])
def test_inductor_takes_all_settings_and_keeps_the_picture(name, reference):
    pipe, chosen = pipeline(), step("compile", name)
    chosen.apply(pipe, site())
    assert np.abs(picture(pipe) - reference).max() <= 1e-4
    assert chosen.verify(pipe, site()).numbers["graph_breaks"] == 0
