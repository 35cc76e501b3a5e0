"""torch.compile: what is compiled, counted and promised. ``backend: eager`` captures graphs without generating code."""

from __future__ import annotations

import ast
import copy
import functools
import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from PIL import Image
from pydantic import ValidationError
from support.option_steps import apply, step
from support.slow import first_ones
from support.tiny import tiny
from support.tiny_pipelines import SIZE, picture, pipeline, site
from torch._dynamo.utils import counters

from diffopt.config.resolve import compose_requests
from diffopt.errors import NoEffect, Refusal
from diffopt.models import calls
from diffopt.pipeline.build import build_pipelines
from diffopt.recipe.plan import make_plan
from diffopt.recipe.rules import CONFLICTS
from diffopt.schema.model import ControlNet
from diffopt.schema.step import Trait
from diffopt.steps.compile import compiled_call
from diffopt.steps.compile.compiled_call import (
    CompiledCall,
    proof_of_compiled_graphs,
    proof_of_compiled_regions,
    proof_with_cuda_graphs,
)
from diffopt.steps.compile.regions import Divided
from diffopt.steps.compile.whole import Inductor, inductor_options

ALL = ["denoiser", "vae_decode", "text_encoders"]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch.set_num_threads(1)
    duck_shape = torch.fx.experimental._config.use_duck_shape
    limits = torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch.fx.experimental._config.use_duck_shape = duck_shape
    torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit = limits


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return picture(pipeline())


class BreakingProcessor(AttnProcessor2_0):
    def __call__(self, *args, **kwargs):
        torch._dynamo.graph_break()
        return super().__call__(*args, **kwargs)


@pytest.mark.slow
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


def with_controlnet() -> StableDiffusionControlNetPipeline:
    """The same random pipeline in each call; its ControlNet has the UNet's widths."""
    base = pipeline()
    torch.manual_seed(1)
    like = ("block_out_channels", "down_block_types", "layers_per_block", "cross_attention_dim", "attention_head_dim")
    widths = {name: base.unet.config[name] for name in (*like, "norm_num_groups", "mid_block_type")}
    net = ControlNetModel(**widths, conditioning_embedding_out_channels=(8, 16)).eval()
    for weight in net.parameters():
        if not weight.any():  # as published ones begin, which would add nothing
            torch.nn.init.normal_(weight, std=0.1)
    pipe = StableDiffusionControlNetPipeline(**base.components, controlnet=net, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def controlled(pipe: StableDiffusionControlNetPipeline, brightness: int = 128) -> np.ndarray:
    noise, control = torch.Generator("cpu").manual_seed(7), Image.new("RGB", (SIZE, SIZE), (brightness, 0, 0))
    settings = {"num_inference_steps": 2, "height": SIZE, "width": SIZE, "generator": noise, "output_type": "np"}
    return pipe("a fox", image=control, **settings).images[0]


CONTROLLED = site(controlnet=ControlNet(class_name="ControlNetModel", id=None, revision=None, variant=None))


@pytest.mark.parametrize(
    ("name", "graphs", "regions"),
    [
        pytest.param("default", (1, 1), None, marks=pytest.mark.slow),
        ("regional", (0, 1), (4, 2)),
        pytest.param("regions", None, (19, 19), marks=pytest.mark.slow),
    ],
)
def test_a_controlnet_is_compiled_with_the_unet(name, graphs, regions):
    """Equal blocks share graphs: the ControlNet comes first, and leaves nothing to compile in the UNet."""
    reference = controlled(with_controlnet())
    assert np.abs(controlled(with_controlnet(), 255) - reference).max() > 1e-3
    pipe, chosen = with_controlnet(), step("compile", name, backend="eager")
    chosen.apply(pipe, CONTROLLED)
    for _ in range(2):
        assert np.abs(controlled(pipe) - reference).max() <= 1e-4
    numbers = chosen.verify(pipe, CONTROLLED).numbers
    assert numbers["graph_breaks"] == 0
    if graphs:
        assert (numbers["unet"], numbers["controlnet"]) == graphs
    if regions:
        assert (numbers["unet_regions"], numbers["controlnet_regions"]) == regions
        assert numbers["unet_regions_never_entered"] == numbers["controlnet_regions_never_entered"] == 0


def drawn(name: str, *overrides: str):
    """The pipeline of a tiny model after one call of one step, and what its step saw."""
    (request,) = compose_requests([*tiny(name), "hardware=cpu", "precision=fp32", "workload.steps=1", *overrides])
    plan = make_plan(request.cell)
    assert not plan.problems, plan.reasons
    pipes = build_pipelines(plan)
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    calls.draw_pictures(calls.calls_of_models(pipes, request.cell.recipe.model.stages, request.cell.workload))
    return pipes[0], request.cell.sites[0], request.cell.recipe.compile


@pytest.mark.parametrize("name", first_ones(["sana_1600m", "sd35_medium", "pixart_sigma", "cogvideox_2b"], 1))
def test_a_class_that_declares_no_blocks_has_them_named_in_its_yaml(name):
    pipe, place, chosen = drawn(name, "compile=regional", "compile.backend=eager")
    transformer = pipe.transformer
    assert not type(transformer)._repeated_blocks, "diffusers declares them now, so the YAML need not"
    named = [part for part in transformer.modules() if type(part).__name__ in place.model.repeated_blocks]
    numbers = chosen.verify(pipe, place).numbers
    assert numbers["transformer_regions"] == len(named) >= 2
    assert numbers["transformer_regions_never_entered"] == numbers["graph_breaks"] == 0
    assert 1 <= numbers["graphs"] <= len(named)


def test_a_model_without_repeated_blocks_is_refused_by_its_plan():
    (request,) = compose_requests(["model=deepfloyd_if", "model.weights=tiny", "hardware=cpu", "compile=regional"])
    reasons = make_plan(request.cell).reasons
    assert any("no blocks that repeat" in reason for reason in reasons)


def test_regions_with_more_shapes_than_dynamo_compiles_of_one_function(reference):
    torch._dynamo.config.recompile_limit = 2
    pipe, chosen = pipeline(), step("compile", "regions", backend="eager")
    chosen.apply(pipe, site())
    picture(pipe)
    assert chosen.verify(pipe, site()).numbers["graph_breaks"] == 0


@pytest.mark.parametrize("name", ["default", "regional"])
def test_functions_that_dynamo_gave_up_are_found_out(name):
    """It runs them as they are and says so in a log alone."""
    pipe, chosen = pipeline(), step("compile", name, backend="eager", fullgraph=False, dynamic=False)
    chosen.apply(pipe, site())
    torch._dynamo.config.recompile_limit = 1
    for side in (32, 40):
        pipe("a fox", num_inference_steps=1, height=side, width=side, output_type="latent")
    with pytest.raises(NoEffect, match=r"its limit of recompiles in \d+ functions of unet"):
        chosen.verify(pipe, site())


class LikeZImage(torch.nn.Module):
    """Looks one part up by name, goes through a list of two kinds, and makes a table in its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(4, 4)) for _ in range(2))
        self.by_name = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 4), "b": torch.nn.Linear(4, 4)})
        self.mixed = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.ReLU()])
        self.table: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.table:
            with torch.device("cpu"):
                self.table.append(torch.arange(4.0))
        for part in (*self.blocks, self.by_name["a"], *self.mixed):
            x = part(x)
        return x * self.table[0]


@pytest.mark.parametrize(("name", "parts"), [("default", None), ("regions", (5, 1))])
@torch.no_grad()
def test_a_model_that_does_more_with_its_parts_than_to_call_them(name, parts):
    """Its table is made under a context that dynamo cannot enter, so the first call runs once without it."""
    pipe = SimpleNamespace(unet=LikeZImage())
    given = torch.ones(1, 4)
    expected = LikeZImage.forward(copy.deepcopy(pipe.unet), given)
    chosen = step("compile", name, backend="eager")
    chosen.apply(pipe, site())
    for _ in range(2):
        torch.testing.assert_close(pipe.unet(given), expected)
    numbers = chosen.verify(pipe, site()).numbers
    assert numbers["graph_breaks"] == 0
    if parts:
        assert (numbers["unet_regions"], numbers["unet_regions_never_entered"]) == parts


def test_regions_of_a_hooked_module_are_found_out():
    """https://github.com/huggingface/accelerate/issues/4253"""
    pipe, chosen = pipeline(), step("compile", "regions", backend="eager")
    add_hook_to_module(pipe.unet, ModelHook())
    chosen.apply(pipe, site())
    picture(pipe)
    with pytest.raises(NoEffect, match="0 graphs"):
        chosen.verify(pipe, site())


def test_regions_go_with_nothing_that_moves_weights():
    assert Trait.COPIES_MODULES in step("compile", "regions").traits
    against = {conflict.first for conflict in CONFLICTS if conflict.second is Trait.COPIES_MODULES}
    assert Trait.MOVES_WEIGHTS in against


def test_components_of_one_class_may_share_graphs():
    def call(graphs: int, *, entered: bool = True) -> CompiledCall:
        made = CompiledCall(lambda: None, cuda_graphs=False, classes={torch.nn.Linear})
        made.calls, made.graphs, made.parts, made.parts_entered = 1, graphs, 1, int(entered)
        return made

    numbers = proof_of_compiled_regions({"unet": call(0), "controlnet": call(1)}, fullgraph=True).numbers
    assert (numbers["unet"], numbers["controlnet"], numbers["graphs"]) == (0, 1, 1)
    for shared in ({"unet": call(0)}, {"unet": call(0, entered=False), "controlnet": call(1)}):
        with pytest.raises(NoEffect, match="0 graphs in 1 calls of unet"):
            proof_of_compiled_regions(shared, fullgraph=True)
    stranger = CompiledCall(lambda: None, cuda_graphs=False)
    stranger.calls = 1
    with pytest.raises(NoEffect, match=r"0 graphs in 1 calls of vae.decode"):
        proof_of_compiled_graphs({"unet": call(1), "vae.decode": stranger}, fullgraph=True)


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


FIRST, LATER = [(64, 1), (96, 3)], [(96, 1), (64, 3), (64, 1)]  # side in pixels, batch


def drawn_in_sizes(pipe, **settings) -> int:
    """Graphs of the first two sizes; a recompile in the later ones raises."""
    before = counters["stats"]["unique_graphs"]

    def draw(side: int, batch: int) -> None:
        size = {"height": side, "width": side, "num_images_per_prompt": batch}
        pipe("a fox", num_inference_steps=1, output_type="latent", **size, **settings)

    for side, batch in FIRST:
        draw(side, batch)
    graphs = counters["stats"]["unique_graphs"] - before
    with torch.compiler.set_stance("fail_on_recompile"):
        for side, batch in LATER:
            draw(side, batch)
    assert counters["stats"]["unique_graphs"] - before == graphs
    return graphs


@pytest.mark.slow
def test_a_unet_with_dynamic_shapes_is_compiled_once():
    """Guidance doubles the batch, so that no size is 1."""
    pipe, chosen = pipeline(), step("compile", "dynamic", backend="aot_eager")
    chosen.apply(pipe, site())
    assert not torch.fx.experimental._config.use_duck_shape
    assert drawn_in_sizes(pipe) == 1
    assert chosen.verify(pipe, site()).numbers["graphs"] == 1


@pytest.mark.slow
def test_a_transformer_with_dynamic_shapes_is_compiled_for_one_picture_and_for_more():
    """Dynamo takes a size of 1 as a constant."""
    pipe, place, _ = drawn("flux_dev")
    dynamic = step("compile", "dynamic", backend="aot_eager")
    dynamic.apply(pipe, place)
    assert drawn_in_sizes(pipe, max_sequence_length=32) == 2
    assert dynamic.verify(pipe, place).numbers["graphs"] == 2


@pytest.mark.slow
def test_without_dynamic_shapes_each_size_is_compiled():
    pipe = pipeline()
    step("compile", "default", backend="eager", dynamic=False).apply(pipe, site())
    with pytest.raises(RuntimeError, match="recompile"):
        drawn_in_sizes(pipe)


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
    assert "test_whole.py:" in numbers["graph_break_places"]


def test_a_graph_break_under_fullgraph_is_an_error():
    pipe = breaking_pipeline()
    step("compile", "default", backend="eager").apply(pipe, site())
    with pytest.raises(torch._dynamo.exc.Unsupported):
        picture(pipe, 1)


def test_a_model_without_repeated_blocks_is_refused():
    pipe = pipeline()
    pipe.unet._repeated_blocks = []
    with pytest.raises(Refusal, match=r"regional: unet .*\(none\); .* repeat in it: ResnetBlock2D, T"):
        step("compile", "regional").apply(pipe, site())


@pytest.mark.parametrize("named", [("NoSuchBlock", "BasicTransformerBlock"), ("BasicTransformerBlock", "NoSuchBlock")])
def test_a_name_of_no_block_is_refused_beside_right_ones(named):
    with pytest.raises(Refusal, match=r"names NoSuchBlock, .*; set model.repeated_blocks=\[BasicTransformerBlock\]"):
        step("compile", "regional").apply(pipeline(), site(repeated_blocks=named))


@pytest.mark.parametrize("name", ["regional", "regions"])
@pytest.mark.parametrize("component", ["vae", "text_encoders"])
def test_parts_of_what_is_not_entered_whole_are_not_offered(name, component):
    with pytest.raises(ValidationError, match="components"):
        step("compile", name, components=["denoiser", component])


def test_a_model_without_vae_has_no_decoder_to_compile():
    (reason,) = step("compile", "max_autotune").problems(site(vae=None))
    assert reason == "compile.components=vae_decode: model toy has none, compile.components=[denoiser] leaves it out"


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


@functools.cache
def inductor() -> tuple[str, ...]:
    """The source of inductor, one text per file, without the declarations of its settings."""
    folder = Path(torch._inductor.__file__).parent
    return tuple(path.read_text() for path in folder.rglob("*.py") if path != folder / "config.py")


def is_read(setting: str) -> bool:
    """Whether a function of inductor that is itself spoken of, or decorated, reads the setting."""
    for text in inductor():
        for found in re.finditer(rf"\bconfig\.{setting}\b", text):
            name, decorated = reader(text, found.start())
            if decorated or name is None or sum(len(re.findall(rf"\b{name}\b", other)) for other in inductor()) > 1:
                return True
    return False


def reader(text: str, position: int) -> tuple[str | None, bool]:
    """The innermost function around a position, None for the module, and whether something registers it."""
    line = text.count("\n", 0, position) + 1
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    around = [node for node in functions if node.lineno <= line <= (node.end_lineno or 0)]
    if not around:
        return None, False
    inner = max(around, key=lambda node: node.lineno)
    return inner.name, bool(inner.decorator_list)


@pytest.mark.parametrize("name", Inductor.model_fields)
def test_every_inductor_option_is_read_by_inductor(name):
    """A deprecated one is still accepted, and ignored."""
    assert is_read(name)


@pytest.mark.parametrize("name", ["use_mixed_mm", "force_fuse_int_mm_with_mul"])
def test_what_the_page_sets_for_int8_is_still_read_by_nothing(name):
    """Where this fails, torch makes something of it again, and compile=max_autotune may set it for int8."""
    assert not is_read(name)


def test_cuda_graphs_are_claimed_on_cuda_alone():
    graphs = {name for name in ("default", "reduce_overhead", "max_autotune", "dynamic") if claims(name, "cuda")}
    assert graphs == {"reduce_overhead", "max_autotune"}
    assert not claims("max_autotune", "cpu")


@pytest.mark.parametrize("name", ["default", "regional", "regions"])
def test_the_mode_says_whether_there_are_cuda_graphs(name):
    modes = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
    assert [mode for mode in modes if claims(name, "cuda", mode=mode)] == ["reduce-overhead", "max-autotune"]
    assert not any(claims(name, "cpu", mode=mode) for mode in modes)


def claims(name: str, device: str, **settings: str) -> bool:
    return Trait.CUDA_GRAPHS in step("compile", name, **settings).traits_on(site(device=device).hardware)


def test_fullgraph_is_promised_only_where_asked():
    whole = {Trait.TRACES, Trait.GENERATES_CODE, Trait.WHOLE_DENOISER}
    assert step("compile", "default").traits == whole | {Trait.FULLGRAPH}
    assert step("compile", "default", fullgraph=False).traits == whole


@pytest.mark.parametrize("name", ["default", "regional", "regions"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_backend_that_only_captures_generates_no_code(name, backend):
    traits = step("compile", name, backend=backend).traits
    assert Trait.FULLGRAPH in traits
    assert Trait.GENERATES_CODE not in traits


class Inductors:
    """Stands for inductor's CUDA graphs: each function records in its second call, or is skipped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded = 0
        counters["inductor"]["cudagraph_skips"] = 0
        monkeypatch.setattr(compiled_call, "count_recorded_cuda_graphs", lambda: self.recorded)

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
        proof_with_cuda_graphs(proof_of_compiled_graphs(calls, fullgraph=True), calls)
    calls["vae.decode"]()
    effect = proof_with_cuda_graphs(proof_of_compiled_graphs(calls, fullgraph=True), calls)
    assert effect.summary.endswith("2 CUDA graphs")
    assert (effect.numbers["unet_cuda_graphs"], effect.numbers["vae.decode_cuda_graphs"]) == (1, 1)


def test_a_component_that_inductor_skipped_is_found_out(monkeypatch):
    inductor = Inductors(monkeypatch)
    calls = {"unet": inductor.function(recorded=True), "vae.decode": inductor.function(recorded=False)}
    for call in (*calls.values(), *calls.values()):
        call()
    assert inductor.recorded == 1
    with pytest.raises(NoEffect, match=r"vae.decode was recorded in 2 calls .*, inductor skipped 1"):
        proof_with_cuda_graphs(proof_of_compiled_graphs(calls, fullgraph=True), calls)


def test_recorded_cuda_graphs_are_none_without_cuda():
    assert compiled_call.count_recorded_cuda_graphs() == 0


def test_recorded_cuda_graphs_are_counted_through_the_tree(monkeypatch):
    from torch._inductor import cudagraph_trees

    def node(*children):
        return SimpleNamespace(children={i: [child] for i, child in enumerate(children)})

    manager = SimpleNamespace(roots={0: [node(node(), node(node()))], 1: [node()]})
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(cudagraph_trees, "get_manager", lambda device, create_if_none_exists: manager)
    assert compiled_call.count_recorded_cuda_graphs() == 5


def test_outputs_are_copies_where_cuda_graphs_replay():
    kept = torch.zeros(2)
    assert CompiledCall(lambda: (kept, "x"), cuda_graphs=False)()[0] is kept
    copy, word = CompiledCall(lambda: (kept, "x"), cuda_graphs=True)()
    assert copy is not kept
    assert word == "x"


def test_a_graph_that_feeds_another_gives_it_copies(monkeypatch):
    """As a ControlNet feeds a UNet: each call begins a step of the pool, which takes the outputs of the one before."""
    pool = torch.zeros(2)
    begun = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(pool.zero_()))

    def replay(residuals=()):
        return [pool.add_(1 + sum(float(part[0]) for part in residuals))], {"mid": pool}

    controlnet, unet = (CompiledCall(replay, cuda_graphs=True) for _ in range(2))
    residuals, middle = controlnet()
    (out,), _ = unet(residuals)
    assert len(begun) == 2
    assert residuals[0].tolist() == middle["mid"].tolist() == [1, 1]
    assert out.tolist() == [2, 2]


def test_sizes_without_symbols_share_none():
    with pytest.raises(ValidationError, match="compile.duck_shape=false does nothing with compile.dynamic=false"):
        step("compile", "default", dynamic=False, duck_shape=False)
    for dynamic in (True, None):
        step("compile", "default", dynamic=dynamic, duck_shape=False)


def test_symbols_of_their_own_are_told_and_proved():
    pipe, chosen = pipeline(), step("compile", "dynamic", backend="eager", components=["text_encoders"])
    chosen.apply(pipe, site())
    pipe.encode_prompt("a fox", "cpu", 1, False)
    effect = chosen.verify(pipe, site())
    assert effect.summary.endswith("equal sizes apart")
    assert effect.numbers["duck_shape"] == "false"
    torch.fx.experimental._config.use_duck_shape = True
    with pytest.raises(NoEffect, match="compile.duck_shape=false, but torch's is true"):
        chosen.verify(pipe, site())


def test_a_backend_that_generates_no_code_takes_no_tuning():
    with pytest.raises(ValidationError, match="compile.backend=eager generates no code: set compile.mode=default"):
        step("compile", "max_autotune", backend="eager")


def test_a_package_takes_no_mode_with_cuda_graphs():
    with pytest.raises(ValidationError, match="mode"):
        step("compile", "aot", mode="reduce-overhead")


@pytest.mark.parametrize("name", ["regional", "regions"])
def test_parts_with_cuda_graphs_begin_a_step_with_each_call_of_the_denoiser(name, monkeypatch, reference):
    """On a CPU that stands for a GPU: what is compiled captures only, so inductor records nothing by itself."""
    marks = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    monkeypatch.setattr(Divided, "settings", property(lambda self: {"backend": "eager", "fullgraph": True}))
    inductor, on_gpu = Inductors(monkeypatch), site(device="cuda")
    pipe, chosen = pipeline(), step("compile", name, mode="reduce-overhead")
    chosen.apply(pipe, on_gpu)
    entered = []
    pipe.unet.register_forward_pre_hook(lambda *_: entered.append(1))
    assert np.abs(picture(pipe) - reference).max() <= 1e-4
    assert len(marks) == len(entered) == 3, "PNDM's calls of the whole, which has more regions than that"
    with pytest.raises(NoEffect, match="no CUDA graph of unet was recorded in 3 calls"):
        chosen.verify(pipe, on_gpu)
    pipe.unet._compiled_call_impl.cuda_graphs_recorded = inductor.recorded = 3
    assert chosen.verify(pipe, on_gpu).numbers["unet_cuda_graphs"] == 3
    pipe.unet._compiled_call_impl.cuda_graphs = False
    with pytest.raises(NoEffect, match="calls of unet begin no step of the CUDA graphs"):
        chosen.verify(pipe, on_gpu)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_parts_begin_no_step_where_there_are_no_cuda_graphs(mode, monkeypatch):
    marks = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    monkeypatch.setattr(Divided, "settings", property(lambda self: {"backend": "eager", "fullgraph": True}))
    pipe, chosen = pipeline(), step("compile", "regional", mode=mode)
    chosen.apply(pipe, site())
    picture(pipe)
    assert "cuda_graphs" not in chosen.verify(pipe, site()).numbers
    assert marks == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["regional", "max_autotune"])
def test_inductor_takes_all_settings_and_keeps_the_picture(name, reference):
    pipe, chosen = pipeline(), step("compile", name)
    chosen.apply(pipe, site())
    assert np.abs(picture(pipe) - reference).max() <= 1e-4
    assert chosen.verify(pipe, site()).numbers["graph_breaks"] == 0
