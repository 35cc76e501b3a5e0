"""LoRAs from safetensors files: fused, live and swapped, on a UNet and on a transformer, and what is refused."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.option_steps import apply, step, values
from support.tiny import tiny
from support.tiny_pipelines import picture, pipeline, site
from torch import nn

from diffopt.config.resolve import compose_requests
from diffopt.errors import NoEffect, Refusal, UsageError
from diffopt.machine import packages
from diffopt.models.classes import PIPELINES
from diffopt.models.lora import with_lora_facts
from diffopt.models.random.weights import random_pipeline
from diffopt.models.resolve import PACKAGED, TINY
from diffopt.recipe.plan import make_plan
from diffopt.schema.step import Site, registered_step_kinds
from diffopt.steps.lora import swap
from diffopt.steps.lora.adapters import Fused, HotSwap, Live

KINDS = ("fused", "live", "hotswap")
QKV = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    torch._dynamo.reset()


def pairs(module: nn.Module, prefix: str, words: tuple[str, ...], rank: int = 4, seed: int = 0) -> dict[str, Any]:
    """A LoRA's tensors for the Linears whose paths end so, of about the size of the weights."""
    noise = torch.Generator().manual_seed(seed)
    found = {}
    for path, part in module.named_modules():
        if isinstance(part, nn.Linear) and path.endswith(words):
            found[f"{prefix}.{path}.lora_A.weight"] = torch.randn(rank, part.in_features, generator=noise)
            up = torch.randn(part.out_features, rank, generator=noise)
            found[f"{prefix}.{path}.lora_B.weight"] = up / (part.in_features * rank) ** 0.5
    return found


class Case:
    """One tiny pipeline: how it is made, and what a step sees of it."""

    def __init__(self, option: str, cls: str, denoiser: str, **call: Any) -> None:
        self.option, self.denoiser, self._cls, self._call = option, denoiser, cls, call
        (request,) = compose_requests([*tiny(option), "hardware=cpu", "measure=quick", "workload.steps=2"])
        self.site: Site = request.cell.sites[0]

    def pipe(self, dtype: torch.dtype = torch.float32) -> Any:
        made = random_pipeline(
            PACKAGED / self.option / TINY, getattr(diffusers, self._cls), device="cpu", dtype={"default": dtype}
        )
        made.set_progress_bar_config(disable=True)
        return made

    def draw(self, pipe: Any) -> np.ndarray:
        noise = torch.Generator().manual_seed(0)
        settings = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np", **self._call}
        drawn: np.ndarray = pipe("a fox", generator=noise, **settings).images[0]
        return drawn

    @functools.cached_property
    def plain(self) -> np.ndarray:
        return self.draw(self.pipe())

    def file(self, folder: Path, name: str = "one", words: tuple[str, ...] = QKV, **how: Any) -> str:
        path = folder / f"{name}.safetensors"
        save_file(pairs(getattr(self.pipe(), self.denoiser), self.denoiser, words, **how), path)
        return str(path)


@functools.cache
def case(name: str) -> Case:
    if name == "unet":
        return Case("sd15", "StableDiffusionPipeline", "unet")
    return Case("flux_dev", "FluxPipeline", "transformer", max_sequence_length=32)


both = pytest.mark.parametrize("family", ["unet", "transformer"])


def lora(kind: str, path: str, **changes: Any) -> Any:
    """The step of ``lora=KIND lora.path=FILE …``, with what the file tells filled in."""
    data = with_lora_facts({**values("lora", kind), "path": path, **changes}, Path.cwd())
    return registered_step_kinds("lora")[kind].from_plain(data)


def put_in(kind: str, family: str, path: str, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[Any, Any]:
    pipe, chosen = case(family).pipe(dtype), lora(kind, path, **changes)
    chosen.apply(pipe, case(family).site)
    return pipe, chosen


@pytest.fixture
def toy(tmp_path: Path) -> str:
    """A file for the UNet of ``tiny_pipelines.pipeline()``."""
    path = tmp_path / "toy.safetensors"
    save_file(pairs(pipeline().unet, "unet", QKV), path)
    return str(path)


@pytest.mark.parametrize(("family", "scale"), [("unet", 0.5), ("transformer", 1.0), ("transformer", -0.5)])
def test_fused_live_and_swappable_draw_the_same_and_prove_it(family, scale, tmp_path):
    one, file = case(family), case(family).file(tmp_path)
    drawn = {}
    for kind in KINDS:
        pipe, chosen = put_in(kind, family, file, scale=scale)
        assert chosen.problems(one.site) == ()
        drawn[kind] = one.draw(pipe)
        effect = chosen.verify(pipe, one.site)
        layers = len(load_file(file)) // 2
        assert effect.numbers[one.denoiser] == layers > 0
    assert np.abs(drawn["fused"] - drawn["live"]).max() <= 1e-4
    np.testing.assert_array_equal(drawn["hotswap"], drawn["live"])
    assert np.abs(drawn["live"] - one.plain).max() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_of_zero_is_the_model_alone_and_refused_as_an_option(kind, tmp_path):
    one = case("transformer")
    pipe, chosen = put_in(kind, "transformer", one.file(tmp_path), scale=0.0)
    np.testing.assert_allclose(one.draw(pipe), one.plain, atol=1e-6)
    assert chosen.problems(one.site) == ("lora.scale=0 switches the LoRA off; choose lora=none",)
    with pytest.raises(NoEffect):
        chosen.verify(pipe, one.site)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_did_nothing_is_found_out(kind, toy):
    with pytest.raises(NoEffect, match=f"lora={kind}"):
        lora(kind, toy).verify(pipeline(), site())


def test_weights_that_were_put_back_are_found_out(toy):
    pipe, chosen = pipeline(), lora("fused", toy)
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    chosen.apply(pipe, site())
    chosen.verify(pipe, site())
    pipe.unet.load_state_dict(before)
    with pytest.raises(NoEffect, match="show 0% of a change"):
        chosen.verify(pipe, site())


def test_weights_that_sequential_offload_keeps_on_the_host_are_looked_at_there(toy):
    from accelerate import cpu_offload

    pipe, chosen = pipeline(), lora("fused", toy)
    chosen.apply(pipe, site())
    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    assert all(weight.is_meta for weight in pipe.unet.parameters())
    assert chosen.verify(pipe, site()).numbers["shown"] == pytest.approx(1)


def test_so_are_those_of_live_layers(toy):
    from accelerate import cpu_offload

    pipe, chosen = pipeline(), lora("live", toy)
    chosen.apply(pipe, site())
    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    assert chosen.verify(pipe, site()).numbers["rank"] == 4


def test_layers_left_beside_fused_weights_are_found_out(toy):
    pipe, chosen = pipeline(), lora("fused", toy)
    chosen.apply(pipe, site())
    pipe.load_lora_weights(toy, adapter_name="again")
    with pytest.raises(NoEffect, match="still stand beside"):
        chosen.verify(pipe, site())


def test_layers_that_were_switched_off_or_taken_out_are_found_out(toy):
    pipe, chosen = pipeline(), lora("live", toy)
    chosen.apply(pipe, site())
    numbers = chosen.verify(pipe, site()).numbers
    assert numbers == {"unet": numbers["unet"], "scale": 1.0, "rank": 4}
    pipe.disable_lora()
    with pytest.raises(NoEffect, match=rf"0 of {numbers['unet']} layers of unet are on"):
        chosen.verify(pipe, site())
    pipe.enable_lora()
    chosen.verify(pipe, site())
    pipe.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1.to_q.set_scale("diffopt", 0.0)
    with pytest.raises(NoEffect, match=r"attn1\.to_q is not"):
        chosen.verify(pipe, site())
    pipe.unload_lora_weights()
    with pytest.raises(NoEffect, match="no layers"):
        chosen.verify(pipe, site())


def test_matrices_that_are_zero_are_found_out(toy, tmp_path):
    zeros = {name: value * ("lora_A" in name) for name, value in load_file(toy).items()}
    save_file(zeros, tmp_path / "zero.safetensors")
    for kind in KINDS:
        pipe, chosen = pipeline(), lora(kind, str(tmp_path / "zero.safetensors"))
        chosen.apply(pipe, site())
        with pytest.raises(NoEffect, match="zero and change nothing"):
            chosen.verify(pipe, site())


@both
def test_what_is_fused_stays_in_fused_projections_and_in_quantized_weights(family, tmp_path):
    one, file = case(family), case(family).file(tmp_path)
    pipe = one.pipe()
    steps = [lora("fused", file), step("fuse", "qkv"), step("quant", "int8_weight")]
    apply(pipe, one.site, *steps[:2])
    live, _ = put_in("live", family, file)
    expected = one.draw(live)
    assert np.abs(one.draw(pipe) - expected).max() <= 1e-4
    steps[2].apply(pipe, one.site)
    assert np.abs(one.draw(pipe) - expected).mean() <= 0.1
    for each in steps:
        each.verify(pipe, one.site)


def test_a_live_one_works_on_quantized_weights(tmp_path):
    one, file = case("transformer"), case("transformer").file(tmp_path)
    pipe, chosen, quant = one.pipe(), lora("live", file), step("quant", "int8_weight")
    apply(pipe, one.site, chosen, quant)
    live, _ = put_in("live", "transformer", file)
    assert np.abs(one.draw(pipe) - one.draw(live)).mean() <= 0.1
    chosen.verify(pipe, one.site)
    quant.verify(pipe, one.site)


@pytest.mark.parametrize("kind", ["live", "hotswap"])
def test_quantizing_leaves_its_matrices_alone_however_high_their_rank(kind, tmp_path):
    one, file = case("transformer"), case("transformer").file(tmp_path, rank=32)
    pipe, chosen, quant = one.pipe(), lora(kind, file), step("quant", "int8_weight")
    apply(pipe, one.site, chosen, quant)
    weights = {
        name: type(part.weight).__name__ for name, part in pipe.transformer.named_modules() if hasattr(part, "weight")
    }
    assert {kind for name, kind in weights.items() if "lora_" in name} == {"Parameter"}
    assert "Int8Tensor" in {kind for name, kind in weights.items() if name.endswith("base_layer")}
    one.draw(pipe)
    chosen.verify(pipe, one.site)
    alone = one.pipe()
    apply(alone, one.site, quant)
    assert quant.verify(pipe, one.site) == quant.verify(alone, one.site), "its matrices are not counted either"


def test_a_live_one_under_fused_projections_is_found_out_too(toy):
    """The plan refuses the two; this is what would happen."""
    pipe, chosen = pipeline(), lora("live", toy)
    apply(pipe, site(), chosen, step("fuse", "qkv"))
    with pytest.raises(NoEffect, match="layers of unet are on"):
        chosen.verify(pipe, site())


@pytest.mark.parametrize(("size", "found"), [(1e-2, True), (1e-5, False)])
def test_a_change_that_half_precision_rounds_away_is_found_out(size, found, tmp_path):
    one = case("transformer")
    tensors = load_file(one.file(tmp_path))
    weak = {name: value * (size if "lora_B" in name else 1) for name, value in tensors.items()}
    save_file(weak, tmp_path / "weak.safetensors")
    pipe, chosen = put_in("fused", "transformer", str(tmp_path / "weak.safetensors"), torch.bfloat16)
    if found:
        assert 0.9 < chosen.verify(pipe, one.site).numbers["shown"] < 1.1
    else:
        with pytest.raises(NoEffect, match="choose lora=live"):
            chosen.verify(pipe, one.site)


def test_live_layers_compute_in_the_models_precision(tmp_path):
    pipe, _ = put_in("live", "transformer", case("transformer").file(tmp_path), torch.bfloat16)
    assert {value.dtype for name, value in pipe.transformer.named_parameters() if "lora_" in name} == {torch.bfloat16}


def test_text_encoders_are_changed_too(tmp_path):
    toy_pipe = pipeline()
    file = tmp_path / "text.safetensors"
    text = pairs(toy_pipe.text_encoder, "text_encoder", ("q_proj", "v_proj"))
    save_file({**text, **pairs(toy_pipe.unet, "unet", ("to_q",))}, file)
    drawn = {}
    for kind in ("fused", "live"):
        pipe, chosen = pipeline(), lora(kind, str(file))
        assert chosen.components == ("text_encoder", "unet")
        chosen.apply(pipe, site())
        drawn[kind] = picture(pipe)
        assert chosen.verify(pipe, site()).numbers["text_encoder"] == len(text) // 2
    assert np.abs(drawn["fused"] - drawn["live"]).max() <= 1e-4
    (reason,) = lora("hotswap", str(file)).problems(site())
    assert "text_encoder" in reason


def test_the_format_of_kohyas_scripts_is_read_with_its_alphas(tmp_path):
    plain = pairs(pipeline().unet, "unet", ("to_q",))
    kohya = {}
    for name, value in plain.items():
        stem, _, matrix = name.removeprefix("unet.").partition(".lora_")
        stem = f"lora_unet_{stem.replace('.', '_')}"
        kohya[f"{stem}.lora_{'down' if matrix[0] == 'A' else 'up'}.weight"] = value
        kohya[f"{stem}.alpha"] = torch.tensor(2.0)  # half of the rank
    files = {"plain": tmp_path / "plain.safetensors", "kohya": tmp_path / "kohya.safetensors"}
    save_file(plain, files["plain"])
    save_file(kohya, files["kohya"])
    chosen = lora("live", str(files["kohya"]))
    assert (chosen.components, chosen.rank) == (("denoiser",), 4)
    drawn = []
    for one in (chosen, lora("live", str(files["plain"]), scale=0.5)):
        pipe = pipeline()
        one.apply(pipe, site())
        drawn.append(picture(pipe))
        one.verify(pipe, site())
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("alpha", [None, 1.0])
@pytest.mark.parametrize("kind", ["fused", "live"])
def test_the_scale_is_that_of_the_file_whatever_its_ranks_and_wherever_it_says_its_alpha(kind, alpha, tmp_path):
    """Layers of two ranks without any alpha have a scale of 1 each; an alpha in the header counts for all of them."""
    low, high = pairs(pipeline().unet, "unet", ("to_q",), rank=2), pairs(pipeline().unet, "unet", ("to_v",), rank=4)
    tensors = low | (high if alpha is None else pairs(pipeline().unet, "unet", ("to_v",), rank=2))
    header = {"r": 2, "lora_alpha": alpha, "target_modules": ["to_q", "to_v"]}
    metadata = (
        {} if alpha is None else {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in header.items()})}
    )
    save_file(tensors, tmp_path / "two.safetensors", metadata={"format": "pt", **metadata})
    pipe, chosen = pipeline(), lora(kind, str(tmp_path / "two.safetensors"))
    chosen.apply(pipe, site())
    expected = pipeline()
    with torch.no_grad():
        for path, part in expected.unet.named_modules():
            if f"unet.{path}.lora_A.weight" in tensors:
                change = tensors[f"unet.{path}.lora_B.weight"] @ tensors[f"unet.{path}.lora_A.weight"]
                part.weight += change * (1 if alpha is None else alpha / 2)
    assert np.abs(picture(pipe) - picture(expected)).max() <= 1e-4
    chosen.verify(pipe, site())


def test_what_a_fused_one_changed_is_saved_and_read_by_plain_diffusers(toy, tmp_path):
    pipe = pipeline()
    apply(pipe, site(), lora("fused", toy), step("fuse", "qkv"))
    drawn = picture(pipe)
    pipe.save_pretrained(tmp_path / "saved")
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "saved", local_files_only=True)
    again.set_progress_bar_config(disable=True)
    assert np.abs(picture(again) - drawn).max() <= 1e-4
    assert np.abs(drawn - picture(pipeline())).max() > 0.01


def renamed(tensors: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {name.replace(old, new): value for name, value in tensors.items()}


MISFITS = [
    (lambda t: renamed(t, "unet.", ""), "names begin with down_blocks"),
    (lambda t: renamed(t, "unet.", "transformer."), "takes unet, text_encoder: its names begin with transformer"),
    (lambda t: renamed(t, "attn1", "attn9"), r"of the \d+ layers in file.safetensors fit unet"),
    (lambda t: renamed(t, "unet.", "unet.nothing."), r"nothing is called nothing\.down_blocks"),
    (lambda t: {n: torch.cat([v, v], 1) if "lora_A" in n else v for n, v in t.items()}, "size mismatch"),
]


@pytest.mark.parametrize(("change", "reason"), MISFITS)
def test_a_file_that_does_not_fit_is_refused_in_words_and_short(change, reason, toy, tmp_path):
    save_file(change(load_file(toy)), tmp_path / "file.safetensors")
    with pytest.raises(Refusal, match=reason) as refused:
        lora("live", str(tmp_path / "file.safetensors")).apply(pipeline(), site())
    assert len(str(refused.value)) < 500


def test_a_pipeline_that_has_a_lora_already_is_refused(toy):
    pipe = pipeline()
    pipe.load_lora_weights(toy, adapter_name="theirs")
    with pytest.raises(Refusal, match="has LoRA layers already"):
        lora("fused", toy).apply(pipe, site())


def test_another_file_than_the_recipes_is_refused(toy):
    chosen = lora("live", toy)
    save_file(renamed(load_file(toy), "to_q", "to_k"), toy)
    with pytest.raises(Refusal, match="not the one that the recipe was made with"):
        chosen.apply(pipeline(), site())
    Path(toy).unlink()
    with pytest.raises(Refusal, match="cannot be read here"):
        chosen.apply(pipeline(), site())


COMPILED = [
    pytest.param("full", {"components": ["denoiser"], "fullgraph": True}, marks=pytest.mark.slow),
    ("regional", {"components": ["denoiser"], "fullgraph": True}),
]


@pytest.mark.parametrize(("way", "settings"), COMPILED)
def test_a_swap_compiles_nothing_anew_and_draws_what_the_other_file_says(way, settings, tmp_path):
    one = case("transformer")
    first = one.file(tmp_path)
    second = one.file(tmp_path, "two", words=("to_q", "to_k"), rank=8, seed=5)
    pipe, chosen = one.pipe(), lora("hotswap", first, swap_path=second, scale=0.5)
    assert chosen.target_rank == 8
    compile_ = step("compile", "default" if way == "full" else way, backend="eager", mode="default", **settings)
    apply(pipe, one.site, chosen, compile_)
    drawn = one.draw(pipe)
    numbers = chosen.verify(pipe, one.site).numbers
    assert (numbers["recompiles"], numbers["rank"]) == (0, 8)
    np.testing.assert_array_equal(one.draw(pipe), drawn)  # the first one is back
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(3):  # scales do not pile up
            swap.swap_lora(pipe, second, adapter="diffopt", scale=0.5)
        swapped = one.draw(pipe)
    live, _ = put_in("live", "transformer", second, scale=0.5)
    np.testing.assert_allclose(swapped, one.draw(live), atol=1e-5)
    assert np.abs(swapped - drawn).max() > 0.01
    compile_.verify(pipe, one.site)


def test_a_swap_on_a_unet_with_convolutions(tmp_path):
    pipe = pipeline()
    noise = torch.Generator().manual_seed(0)
    files = []
    for name, rank in (("one", 2), ("two", 4)):
        tensors = pairs(pipe.unet, "unet", ("to_q",), rank)
        for path, part in pipe.unet.named_modules():
            if isinstance(part, nn.Conv2d) and path.endswith("conv1"):
                down = torch.randn(rank, part.in_channels, 3, 3, generator=noise) / part.in_channels
                tensors[f"unet.{path}.lora_A.weight"] = down
                tensors[f"unet.{path}.lora_B.weight"] = torch.randn(part.out_channels, rank, 1, 1, generator=noise)
        files.append(str(tmp_path / f"{name}.safetensors"))
        save_file(tensors, files[-1])
    chosen = lora("hotswap", files[0], swap_path=files[1])
    chosen.apply(pipe, site())
    before = picture(pipe)
    assert chosen.verify(pipe, site()).numbers["recompiles"] == 0
    np.testing.assert_array_equal(picture(pipe), before)
    swap.swap_lora(pipe, files[1], adapter="diffopt")
    live = pipeline()
    lora("live", files[1]).apply(live, site())
    np.testing.assert_allclose(picture(pipe), picture(live), atol=1e-5)


def test_what_cannot_be_swapped_in_is_refused(tmp_path):
    one = case("transformer")
    first, high = one.file(tmp_path, words=("to_q",)), one.file(tmp_path, "high", words=("to_q",), rank=8)
    more = one.file(tmp_path, "more")
    pipe, _ = put_in("hotswap", "transformer", first)
    with pytest.raises(Refusal, match="has rank 8, and the layers were prepared for 4"):
        swap.swap_lora(pipe, high, adapter="diffopt")
    with pytest.raises(Refusal, match="for which the first file made no layer"):
        swap.swap_lora(pipe, more, adapter="diffopt")
    with pytest.raises(Refusal, match="no LoRA called other"):
        swap.swap_lora(pipe, first, adapter="other")
    with pytest.raises(Refusal, match="no safetensors file"):
        swap.swap_lora(pipe, tmp_path / "none.safetensors", adapter="diffopt")


def test_swapping_the_same_file_proves_nothing(tmp_path):
    file = case("transformer").file(tmp_path)
    pipe, chosen = put_in("hotswap", "transformer", file, swap_path=file)
    with pytest.raises(NoEffect, match="as the first file does"):
        chosen.verify(pipe, case("transformer").site)


def test_what_is_compiled_after_a_swap_is_found_out(tmp_path, monkeypatch):
    one = case("transformer")
    files = one.file(tmp_path), one.file(tmp_path, "two", seed=1)
    pipe, chosen = put_in("hotswap", "transformer", files[0], swap_path=files[1])
    drawn = one.draw(pipe)
    compiled = torch.compile(lambda x: x + 1, backend="eager")
    monkeypatch.setattr(swap, "_draw_pictures", lambda pipe, site: compiled(torch.zeros(2)))
    with pytest.raises(NoEffect, match="1 graphs were compiled after the swap"):
        chosen.verify(pipe, one.site)
    np.testing.assert_array_equal(one.draw(pipe), drawn)


def test_layers_that_are_not_prepared_are_found_out(tmp_path, monkeypatch):
    one = case("transformer")
    monkeypatch.setattr(diffusers.FluxTransformer2DModel, "enable_lora_hotswap", lambda self, **settings: None)
    pipe, chosen = put_in("hotswap", "transformer", one.file(tmp_path), target_rank=16)
    with pytest.raises(NoEffect, match="not prepared for another file of rank 16"):
        chosen.verify(pipe, one.site)


def test_matrices_that_were_quantized_cannot_be_swapped(tmp_path):
    one = case("transformer")
    pipe, chosen = one.pipe(), lora("hotswap", one.file(tmp_path, rank=32))
    chosen.apply(pipe, one.site)
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(pipe.transformer, Int8WeightOnlyConfig(set_inductor_config=False))
    with pytest.raises(NoEffect, match="are quantized"):
        chosen.verify(pipe, one.site)


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (("lora=live", "fuse=qkv"), "drops a live LoRA"),
        (("lora=hotswap", "compile=regions"), "compile_regions puts wrapped modules"),
        (("lora=hotswap", "compile=aot"), "a package keeps the scales"),
        (("lora=hotswap", "memory=model_offload", "hardware=h100"), "takes off the hooks"),
    ],
)
def test_a_plan_refuses_what_does_not_go_together(words, fact):
    (request,) = compose_requests(["model=flux_dev", "model.weights=tiny", "hardware=cpu", "measure=quick", *words])
    assert any(fact in reason for reason in make_plan(request.cell).reasons)


@pytest.mark.parametrize("kind", KINDS)
def test_an_option_without_a_file_asks_for_it(kind):
    chosen = step("lora", kind)
    (reason,) = chosen.problems(site())
    assert "lora.path=FILE.safetensors" in reason
    with pytest.raises(Refusal, match=r"lora\.path=FILE\.safetensors"):
        chosen.apply(pipeline(), site())


def test_a_plan_knows_what_the_header_tells(toy):
    flux, pixart = (
        compose_requests([*tiny(name), "hardware=cpu", "measure=quick"])[0].cell.sites[0]
        for name in ("flux_dev", "pixart_sigma")
    )
    assert "changes unet, which model flux_dev does not have" in lora("live", toy).problems(flux)[0]
    assert "has no load_lora_weights" in lora("live", toy).problems(pixart)[0]
    cascade = site(cascade=(site().model,))
    assert "is a cascade" in lora("fused", toy).problems(cascade)[0]
    assert "the file's rank is 4" in lora("hotswap", toy, target_rank=2).problems(site())[0]
    for kind in KINDS:
        assert lora(kind, toy).problems(site()) == ()


def test_pipelines_without_loras_are_those_that_the_plan_names():
    for name, known in PIPELINES.items():
        assert hasattr(getattr(diffusers, name), "load_lora_weights") is known.loras, name


def test_without_peft_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(packages, "installed_version", lambda name, there=None: None)
    for kind in KINDS:
        told = packages.reason_of_lacking([step("lora", kind).requires()])
        assert told == "needs peft>=0.18: pip install 'diffopt-toolkit[lora]'"


def test_a_file_counts_by_its_content_and_not_by_its_name(toy, tmp_path):
    chosen = lora("fused", toy)
    assert chosen.content == hashlib.sha256(Path(toy).read_bytes()).hexdigest()
    assert (chosen.components, chosen.rank) == (("unet",), 4)
    moved = Path(toy).rename(tmp_path / "moved.safetensors")
    again = lora("fused", str(moved))
    ids = []
    for one in (chosen, again, lora("fused", str(moved), scale=2.0)):
        (request,) = compose_requests(["model=sd15", "model.weights=tiny", "hardware=cpu", "measure=quick"])
        ids.append(request.cell.recipe.model_copy(update={"lora": one}).id)
    assert ids[0] == ids[1] != ids[2]


def test_resolving_once_more_changes_nothing(toy):
    data = with_lora_facts({**values("lora", "hotswap"), "path": toy, "swap_path": toy}, Path.cwd())
    assert (data["rank"], data["target_rank"], data["components"]) == (4, 4, ["unet"])
    assert data["swap_content"] == data["content"]
    assert with_lora_facts(data, Path("/elsewhere")) == data
    relative = with_lora_facts({**values("lora", "live"), "path": Path(toy).name}, Path(toy).parent)
    assert relative["path"] == toy


def test_options_without_a_file_and_values_of_the_wrong_type_are_left_to_others():
    for data in ({"kind": "none"}, values("lora", "fused"), {"kind": "live", "path": 5, "rank": None}):
        assert with_lora_facts(data, Path.cwd()) == data


def broken(toy: str, folder: Path, what: str) -> Path:
    """A file or folder that is no LoRA's, of this kind."""
    if what == "folder":
        (folder / "folder").mkdir()
        return (Path(toy).rename(folder / "folder" / "it.safetensors")).parent
    path = folder / ("pickle.bin" if what == "pickle" else f"{what}.safetensors")
    if what == "none":
        return path
    content = {"cut": Path(toy).read_bytes()[:-40], "pointer": b"version https://git-lfs.github.com/spec/v1\n"}
    path.write_bytes(content.get(what, b"x"))
    if what in ("model", "dora"):
        save_file({"weight" if what == "model" else "unet.to_q.lora.dora_scale": torch.ones(2)}, path)
    return path


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("none", "there is no such file"),
        ("folder", "give the file, such as .*it.safetensors"),
        ("pickle", "loading a pickle can run code"),
        ("cut", "cannot be read as safetensors"),
        ("pointer", "git lfs pull"),
        ("model", "no tensor has lora in its name"),
        ("dora", "is a DoRA"),
    ],
)
def test_what_is_no_lora_is_a_mistake_told_in_one_paragraph(what, message, toy, tmp_path):
    path = broken(toy, tmp_path, what)
    with pytest.raises(UsageError, match=message) as mistake:
        lora("live", str(path))
    assert "\n" not in str(mistake.value)


def test_a_file_that_is_another_than_the_recipes_is_told(toy):
    with pytest.raises(UsageError, match=r"lora\.content=null takes it"):
        lora("live", toy, content="0" * 64)


def test_kinds_are_read_without_torch():
    code = "import diffopt.models.lora, diffopt.recipe.recipe, sys; sys.exit(bool({'torch', 'peft'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert {cls.model_fields["kind"].annotation.__args__[0] for cls in (Fused, Live, HotSwap)} == set(KINDS)
