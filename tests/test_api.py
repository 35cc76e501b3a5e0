"""diffopt from Python, case by case; each public name in the places where users work is in whole/test_uses.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from support.slow import first_ones
from support.tiny import tiny
from support.tiny_pipelines import pipeline, xl_pipeline

import diffopt
from diffopt.config import Composer
from diffopt.config.resolve import compose_requests
from diffopt.models.resolve import packaged_architecture
from diffopt.pipeline.adopt import facts_of_loaded_pipeline
from diffopt.pipeline.load import load_pipeline

FUNCTIONS = ("compose", "load", "optimize", "plan", "run")
MODELS_OF_OTHERS = ("sdxl", "flux_dev", "sd35_medium", "wan21_t2v_1_3b", "sd15_controlnet")


def python(code: str, cwd: Path) -> str:
    """What a plain Python prints; its exit code must be 0."""
    words = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def drawn(pipe: Any, **asked: Any) -> np.ndarray[Any, Any]:
    """What the pipeline draws in two steps, whatever its family."""
    pipe.set_progress_bar_config(disable=True)
    given = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "np", "height": 64, "width": 64, **asked}
    output = pipe(**given, generator=torch.Generator().manual_seed(0))
    return np.asarray(output[0])


def plain(name: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline of the model, loaded and left alone, and what it must be asked besides."""
    (request,) = compose_requests([*tiny(name), "hardware=cpu"])
    model = request.cell.recipe.model
    pipe = load_pipeline(model, model.task, device="cpu", dtype={"default": torch.float32})
    asked: dict[str, Any] = {"num_frames": 5} if model.task == "txt2video" else {}
    return pipe, asked | ({"image": torch.zeros(1, 3, 64, 64)} if model.task == "controlnet" else {})


# names


def test_dir_lists_the_public_names() -> None:
    assert {*dir(diffopt)} == {*diffopt.__all__, "__version__"}
    assert all(getattr(diffopt, name) is not None for name in diffopt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = diffopt.lod


def test_a_fresh_process_lists_them_too_and_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, diffopt; assert {*diffopt.__all__} <= {*dir(diffopt)}; from diffopt import *\n"
        "cells = compose(overrides=['compile=none,regional'], multirun=True); print(plan(cells[1]))\n"
        "assert 'torch' not in sys.modules and load.__name__ == 'load' and Cell is type(cells[0])"
    )
    assert "compile    compile=regional" in python(code, tmp_path)


@pytest.mark.parametrize("name", first_ones(FUNCTIONS, 2))
@pytest.mark.parametrize("first", ["the function", "the submodule"])
def test_a_submodule_does_not_hide_the_function_of_its_name(name: str, first: str, tmp_path: Path) -> None:
    """Whether or not there is such a package today."""
    inner = tmp_path / "more" / name
    inner.mkdir(parents=True)
    (inner / "__init__.py").write_text("x = 1\n")
    (inner / "part.py").write_text(f"from diffopt.{name} import x\ny = x + 1\n")
    order = ["assert diffopt.{0} is function()", "import diffopt.{0}.part; from diffopt.{0} import part, x"]
    lines = [
        "import sys, importlib, diffopt; diffopt.__path__.insert(0, 'more')",
        f"home = {name!r} in ('plan', 'compose') and diffopt.__path__.pop(0)",  # which the function itself needs
        "function = lambda: getattr(importlib.import_module('diffopt.api'), '{0}')",
        *(["function()", "sys.modules.pop('diffopt.{0}', None)"] if name in ("plan", "compose") else []),
        "home and diffopt.__path__.insert(0, home)",
        *(order if first == "the function" else order[::-1]),
        "assert (part.y, x, sys.modules['diffopt.{0}.part']) == (2, 1, part)",
        "from diffopt import {0}; assert {0} is diffopt.{0} is function() and callable({0})",
    ]
    python("\n".join(lines).replace("{0}", name), tmp_path)


def test_a_name_can_be_replaced_by_what_is_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffopt, "run", len)
    assert diffopt.run is len


# load


def test_conf_beside_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "# @package _global_\n# mine\ndefaults:\n  - override /compile: regional\n"
    for folder, name in (("conf", "exact"), ("more", "other")):
        (tmp_path / folder / "recipe").mkdir(parents=True)
        (tmp_path / folder / "recipe" / f"{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert diffopt.load("exact").diffopt.compile.kind == "regional"
    (cell,) = diffopt.compose("exact")
    assert (cell.choices["recipe"], cell.choices["compile"]) == ("exact", "regional")
    (other,) = diffopt.compose("other", config_dirs=["more"])
    assert other.id == cell.id
    with pytest.raises(diffopt.UsageError, match="config_dirs: nope: there is no such folder"):
        diffopt.compose(config_dirs=["nope"])


@pytest.mark.parametrize("call", [diffopt.load, diffopt.compose, lambda **given: diffopt.optimize(pipeline(), **given)])
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"overrides": "model=tiny"}, r"overrides='model=tiny': a list is wanted.*\[\"model=tiny\"\]"),
        ({"overrides": None}, "overrides=None: a list is wanted"),
        ({"overrides": [1]}, r"overrides=\[1\]: a list is wanted"),
        ({"config_dirs": "conf"}, "config_dirs='conf': a list is wanted"),
        ({"recipe": 3}, "recipe: the name of a recipe or the path of a file is wanted, not a int"),
        ({"recipe": diffopt.compose()[0].recipe}, "^recipe: the name .* not a Recipe. `diffopt show .{,30}$"),
        ({"overrides": ["study=x"]}, r"study=x has no meaning here.*diffopt.run\(cell, study="),
        ({"overrides": ["launch=local"]}, "launch=local has no meaning here"),
        ({"overrides": ["launch.grace=3"]}, "launch.grace=3 has no meaning here"),
        ({"overrides": ["compile=none,regional"]}, "multirun=True"),
        ({"overrides": ["--recipe=x.yaml"]}, "'--recipe=x.yaml' is not an override"),
        ({"recipe": "nope"}, "the group 'recipe' has no option 'nope'"),
    ],
)
def test_mistakes_of_the_caller(call: Any, given: dict[str, Any], says: str) -> None:
    with pytest.raises(diffopt.UsageError, match=says):
        call(**given)


def test_a_study_is_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (cell,) = diffopt.compose()
    for study in (5, True):
        with pytest.raises(diffopt.UsageError, match="a study has a name or a path, which is a text"):
            diffopt.run(cell, study=study)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_is_not_here_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffopt.machine.nvml.detect_gpus", list)
    with pytest.raises(diffopt.Refusal, match="hardware=a100 is declared, but this machine has no NVIDIA GPU"):
        diffopt.load(overrides=["hardware=a100"])


# optimize


def test_a_plain_pipeline_in_a_fresh_process(tmp_path: Path) -> None:
    code = (
        "import diffopt; from diffusers import StableDiffusionPipeline as P\n"
        f"p = P.from_pretrained({str(packaged_architecture('tiny'))!r}, safety_checker=None)\n"
        "assert diffopt.optimize(p, overrides=['fuse=qkv']) is p\n"
        "assert p.unet.mid_block.attentions[0].transformer_blocks[0].attn1.fused_projections\n"
        "print(p.diffopt.model.denoiser, p('a red circle', num_inference_steps=1).images[0].size)"
    )
    assert python(code, tmp_path) == "unet (64, 64)\n"


@pytest.mark.parametrize("name", MODELS_OF_OTHERS)
def test_with_nothing_chosen_it_draws_bit_for_bit_what_the_plain_one_draws(name: str) -> None:
    pipe, asked = plain(name)
    before, flags = drawn(pipe, **asked), torch.backends.cudnn.allow_tf32
    assert diffopt.optimize(pipe, overrides=["hardware=cpu"]) is pipe
    assert np.array_equal(drawn(pipe, **asked), before)
    assert pipe.diffopt.model.denoiser_class == type(getattr(pipe, pipe.diffopt.model.denoiser)).__name__
    assert torch.backends.cudnn.allow_tf32 == flags, "a precision that nobody chose is left as it is"


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")  # diffusers calls it itself
@pytest.mark.parametrize("make", [pipeline, xl_pipeline])
@pytest.mark.parametrize(
    ("dtype", "own"), first_ones([("float16", "fp16"), ("float32", "fp32"), ("bfloat16", "bf16")], 1)
)
def test_the_precision_of_the_weights_is_taken(make: Any, dtype: str, own: str) -> None:
    """Also SDXL in float16 as everybody loads it, whose VAE is widened within each call."""
    before = drawn(make(getattr(torch, dtype)), num_inference_steps=1)
    pipe, other = make(getattr(torch, dtype)), {"fp32": "bf16", "bf16": "fp16", "fp16": "fp32"}[own]
    with pytest.raises(diffopt.Refusal, match=f"precision={other} is chosen.*loaded as precision={own}"):
        diffopt.optimize(pipe, overrides=["hardware=cpu", f"precision={other}"])
    diffopt.optimize(pipe, overrides=["hardware=cpu"])
    assert pipe.diffopt.precision.dtype == dtype
    assert np.array_equal(drawn(pipe, num_inference_steps=1), before)


def test_a_precision_that_is_chosen_and_there_is_applied() -> None:
    pipe = pipeline()
    diffopt.optimize(pipe, overrides=["hardware=cpu", "precision=fp32"])
    assert not torch.backends.cudnn.allow_tf32
    again = xl_pipeline(torch.bfloat16)
    diffopt.optimize(again, overrides=["hardware=cpu", "precision.vae=bfloat16"])
    assert again.diffopt.precision.vae == "bfloat16"
    with pytest.raises(diffopt.Refusal, match=r"precision=bf16 \(changed: vae\) is chosen.*vae was to be float32"):
        diffopt.optimize(xl_pipeline(torch.bfloat16), overrides=["hardware=cpu", "precision.vae=float32"])


def test_the_precision_of_a_recipe_is_a_choice() -> None:
    pipe = pipeline()
    with pytest.raises(diffopt.Refusal, match=r"precision=fp16 is chosen.*loaded as precision=fp32"):
        diffopt.optimize(pipe, "pytorch2", overrides=["hardware=cpu"])
    assert not hasattr(pipe, "diffopt")
    assert pipe.unet.conv_in.weight.is_contiguous(), "refused before anything was applied"


def test_the_facts_are_the_pipelines_own() -> None:
    """Its linears are found where it has them, not where the default model does."""
    pipe = xl_pipeline()
    diffopt.optimize(pipe, overrides=["hardware=cpu", "quant=int8_weight"])
    model = pipe.diffopt.model
    assert (model.name, model.text_encoders) == ("StableDiffusionXLPipeline", ("text_encoder", "text_encoder_2"))
    assert model.limits.fp16_vae_overflows
    assert "8" in type(pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight).__name__


@pytest.mark.parametrize("name", MODELS_OF_OTHERS)
def test_the_same_facts_as_from_a_folder(name: str, tmp_path: Path) -> None:
    pipe, _ = plain(name)
    pipe.save_pretrained(tmp_path)
    (request,) = compose_requests(["model=local", f"model.path={tmp_path}", "hardware=cpu"])
    folder = request.cell.recipe.model.model_dump(mode="json")
    found = json.loads(json.dumps(facts_of_loaded_pipeline(pipe, Composer().compose(["model=local"]).data["model"])))
    own = {"name": type(pipe).__name__, "path": None, "content": found["content"]}
    unsaid = {"size_limit": None, "train_timesteps": None}
    assert found == unsaid | folder | own, "a model without a limit does not say so"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sdxl", "it is a StableDiffusionPipeline, the model's are StableDiffusionXLPipeline"),
        ("flux_dev", "it is a StableDiffusionPipeline"),
        ("sd15", "its unet has "),
        ("deepfloyd_if_x4", "it is a StableDiffusionPipeline"),
        ("deepfloyd_if", "3 pipelines in a row"),
    ],
)
def test_a_model_that_is_not_the_pipelines_is_refused(name: str, says: str) -> None:
    with pytest.raises(diffopt.Refusal, match=f"model={name} is .*{says}"):
        diffopt.optimize(pipeline(), overrides=[*tiny(name), "hardware=cpu"])


def test_the_model_of_a_recipe_file_or_of_an_overlay_counts_too(tmp_path: Path, monkeypatch: Any, cli: Any) -> None:
    code, out, _ = cli("show", "model=sdxl", "model.weights=tiny", "fuse=qkv", "hardware=cpu")
    assert code == 0
    (tmp_path / "xl.yaml").write_text(out)
    with pytest.raises(diffopt.Refusal, match="model=sdxl is chosen"):
        diffopt.optimize(pipeline(), tmp_path / "xl.yaml")
    own, _ = plain("sdxl")
    assert diffopt.optimize(own, tmp_path / "xl.yaml").diffopt.fuse.kind == "qkv"
    (tmp_path / "conf" / "recipe").mkdir(parents=True)
    (tmp_path / "conf" / "recipe" / "xl.yaml").write_text("# @package _global_\ndefaults:\n  - override /model: sdxl\n")
    with pytest.raises(diffopt.Refusal, match="model=sdxl is chosen"):
        diffopt.optimize(pipeline(), "xl")


def test_a_value_of_the_model_is_set_on_its_own_facts() -> None:
    pipe = diffopt.optimize(pipeline(), overrides=["model.steps=7", "hardware=cpu"])
    assert pipe.diffopt.model.steps == 7
    with pytest.raises(diffopt.UsageError, match="model.path says what to load, and the pipeline is loaded already"):
        diffopt.optimize(pipeline(), overrides=["model.path=x"])


def test_a_class_of_ones_own_is_named_without_a_folder() -> None:
    class Mine(type(pipeline())):  # type: ignore[misc]
        pass

    pipe = Mine(**pipeline().components, requires_safety_checker=False)
    with pytest.raises(diffopt.UsageError, match="this Mine: model_index.json: .*model.pipelines.txt2img=Mine"):
        diffopt.optimize(pipe, overrides=["hardware=cpu"])
    words = ["hardware=cpu", "model.pipelines.txt2img=Mine", "model.steps=2", "model.guidance=7.5"]
    assert diffopt.optimize(pipe, overrides=words) is pipe


def test_what_came_later_cannot_come_first() -> None:
    pipe = diffopt.load(overrides=["fuse=qkv", "hardware=cpu"])
    with pytest.raises(diffopt.Refusal, match=r"optimized already, fuse \(qkv\)"):
        diffopt.optimize(pipe, overrides=["quant=int8_weight"])
    loaded = diffopt.load(overrides=["hardware=cpu"])
    assert diffopt.optimize(loaded, overrides=["fuse=qkv", "hardware=cpu"]).diffopt.fuse.kind == "qkv"


def test_what_is_no_pipeline() -> None:
    with pytest.raises(diffopt.UsageError, match="a pipeline of diffusers, but got a UNet2DConditionModel"):
        diffopt.optimize(pipeline().unet)


# compose, plan, run, save_quantized


def test_cells_are_those_of_the_command_line(cli: Any) -> None:
    words = ["compile=none,regional", "hardware=cpu", "quant=none,int8_weight"]
    cells = diffopt.compose(overrides=words, multirun=True)
    code, out, _ = cli("plan", "-m", *words)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line[:12].isalnum() and len(line.split()[0]) == 12] == [
        cell.id for cell in cells
    ]
    assert [(cell.choices["compile"], cell.choices["quant"]) for cell in cells] == [
        ("none", "none"),
        ("none", "int8_weight"),
        ("regional", "none"),
        ("regional", "int8_weight"),
    ]
    assert len(diffopt.compose(overrides=["sweep=demo"], multirun=True)) > 1


def test_a_plan_prints_as_on_the_command_line(cli: Any) -> None:
    words = ["precision=tf32", "hardware=cpu", "compile=reduce_overhead"]
    (cell,) = diffopt.compose(overrides=words)
    found = diffopt.plan(cell)
    assert cli("plan", *words)[1] == f"{found}\n"
    assert (found.status, found.reasons) == ("refused", [problem.text for problem in found.problems])
    assert found.notes
    assert found.reasons


def test_a_recipe_file_gives_its_cell(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "fused.yaml").write_text(cli("show", "fuse=qkv", "hardware=cpu")[1])
    (cell,) = diffopt.compose(tmp_path / "fused.yaml")
    assert [cell.id] == [cell.id for cell in diffopt.compose(overrides=["fuse=qkv", "hardware=cpu"])]
    assert cell.choices["fuse"] == "qkv"


def test_choices_are_part_of_a_cell_and_of_no_id() -> None:
    (cell,) = diffopt.compose(overrides=["hardware=cpu"])
    assert diffopt.Cell.model_validate_json(cell.model_dump_json()).choices == cell.choices
    bare = diffopt.Cell.model_validate_json(cell.model_dump_json(exclude={"choices"}))
    assert (bare.id, bare.choices, hash(bare)) == (cell.id, {}, hash(cell))
    assert {cell, diffopt.Cell.model_validate_json(cell.model_dump_json())} == {cell}
    assert "precision=dtype" in str(diffopt.plan(bare))
    assert "precision=fp32" in str(diffopt.plan(cell))


@pytest.mark.parametrize("call", [diffopt.run, diffopt.plan])
def test_a_list_is_no_cell(call: Any) -> None:
    with pytest.raises(diffopt.UsageError, match="one Cell is wanted, but got a list; diffopt.compose gives"):
        call(diffopt.compose())


def test_save_quantized(tmp_path: Path) -> None:
    pipe = diffopt.optimize(pipeline(), overrides=["quant=int8_weight", "hardware=cpu"])
    diffopt.save_quantized(pipe, tmp_path)
    again = DiffusionPipeline.from_pretrained(str(tmp_path), dtype=torch.float32, use_safetensors=True)
    assert np.array_equal(drawn(again), drawn(pipe))


def test_the_exceptions() -> None:
    for error in (diffopt.UsageError, diffopt.Refusal, diffopt.NoEffect):
        assert issubclass(error, diffopt.DiffoptError)
    assert isinstance(diffopt.compose()[0].recipe, diffopt.Recipe)
