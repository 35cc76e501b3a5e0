"""What is saved after a step is what was loaded: no step leaves a trace in the config of a component.

A sampler is the exception: the scheduler group exchanges it, and what is saved is the one that was chosen.
"""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from support.option_steps import CONF, step, values
from support.tiny import families
from support.tiny_families import apply, cell, drawn, error, pipelines

from diffopt.errors import Refusal
from diffopt.recipe.plan import make_plan
from diffopt.recipe.recipe import STEP_GROUPS

FAST = ["sdxl", "sd15", "sd35_medium"]
SECOND_CLASSES = ["sdxl inpaint", "flux_schnell img2img"]  # tasks of a family share its components, not its pipeline
# Every option but those of LoRAs, which need a file; compile only prepares here, since nothing is called.
STEPS = [
    (group, path.stem)
    for group in STEP_GROUPS
    for path in sorted((CONF / group).glob("*.yaml"))
    if values(group, path.stem)["kind"] != "none" and group != "lora"
]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def configs(pipe: Any) -> dict[str, Any]:
    """What save_pretrained writes about each component, beside its weights, and about the pipeline."""
    written = {"model_index": json.loads(pipe.to_json_string())}
    for name, part in pipe.components.items():
        described = part if hasattr(part, "to_json_string") else getattr(part, "config", None)
        if described is not None:
            written[name] = json.loads(described.to_json_string())
    return written


def files(folder: Path) -> dict[str, Any]:
    """Every config that lies in a saved folder."""
    names = ("model_index.json", "config.json", "scheduler_config.json")
    found = [path for path in sorted(folder.rglob("*.json")) if path.name in names]
    return {str(path.relative_to(folder)): json.loads(path.read_text()) for path in found}


def without_sampler(written: dict[str, Any]) -> dict[str, Any]:
    """Of :func:`configs`: the sampler, and its class in the index, are the choice of the scheduler group."""
    index = {key: value for key, value in written["model_index"].items() if key != "scheduler"}
    return {name: config for name, config in written.items() if name != "scheduler"} | {"model_index": index}


def applied(option: str, group: str, name: str) -> list[Any] | None:
    """The pipelines with the step's option applied; None where the plan has something against it, or it cannot work."""
    asked = cell(option, f"{group}={name}", "workload.steps=8")
    if make_plan(asked).problems:
        return None
    pipes = pipelines(asked)
    try:
        apply(pipes, asked, getattr(asked.recipe, group))
    except Refusal:
        return None
    return pipes


@pytest.mark.slow
@pytest.mark.parametrize("option", [*families(), *SECOND_CLASSES])
def test_no_step_leaves_a_trace_in_a_config(option: str) -> None:
    plain = [configs(pipe) for pipe in pipelines(cell(option))]
    tried: set[tuple[str, str]] = set()
    for group, name in STEPS:
        kind = (group, values(group, name)["kind"])
        if option not in FAST and kind in tried:
            continue  # one option of each kind
        pipes = applied(option, group, name)
        if pipes is None:
            continue
        tried.add(kind)
        found = [configs(pipe) for pipe in pipes]
        if group == "scheduler":
            found, expected = [without_sampler(each) for each in found], [without_sampler(each) for each in plain]
        else:
            expected = plain
        assert found == expected, f"{group}={name}"
    assert len(tried) > 8


@pytest.mark.parametrize("option", FAST)
@pytest.mark.parametrize(("group", "name"), [("precision", "fp32"), ("attention", "sdpa")])
def test_what_is_saved_after_a_call_is_what_was_loaded(group: str, name: str, option: str, tmp_path: Path) -> None:
    asked = cell(option, "workload.steps=1")
    for folder, steps in (("plain", []), ("applied", [step(group, name)])):
        pipes = pipelines(asked)
        apply(pipes, asked, *steps)
        if steps:
            drawn(pipes, asked)
        pipes[0].save_pretrained(str(tmp_path / folder))
    assert files(tmp_path / "applied") == files(tmp_path / "plain")
    assert len(files(tmp_path / "plain")) > 4


def loaded_half() -> tuple[Any, Any]:
    """SDXL with a VAE that is kept in float16, which its pipeline would widen in each call; and the cell."""
    asked = cell("sdxl", "workload.steps=1")
    half = step("precision", "fp32", vae="float16")
    pipes = pipelines(asked)
    pipes[0].vae.to(torch.float16)
    half.apply(pipes[0], asked.sites[0])
    return pipes[0], asked


def test_the_vae_stays_as_chosen_in_calls_and_the_folder_as_it_was(tmp_path: Path) -> None:
    pipe, asked = loaded_half()
    drawn([pipe], asked)
    assert {weight.dtype for weight in pipe.vae.parameters()} == {torch.float16}
    assert pipe.vae._diffopt_decoded_in == torch.float16
    pipe.save_pretrained(str(tmp_path))
    again = StableDiffusionXLPipeline.from_pretrained(str(tmp_path), dtype=torch.float32, local_files_only=True)
    assert again.vae.config.force_upcast is True
    assert type(pipe.vae).from_config(pipe.vae.config).config.force_upcast is True


def pickled(pipe: Any) -> Any:
    return pickle.loads(pickle.dumps(pipe))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_of_a_pipeline_keeps_the_choice_and_decodes_with_its_own_vae(copied, tmp_path: Path) -> None:
    pipe, asked = loaded_half()
    other = copied(pipe)
    before = drawn([pipe], asked)
    assert error(drawn([other], asked), before) == 0
    assert other.vae._diffopt_decoded_in == torch.float16
    with torch.no_grad():
        for weight in other.vae.parameters():
            weight.zero_()
    assert error(drawn([other], asked), before) > 0.1
    assert error(drawn([pipe], asked), before) == 0
    other.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "vae" / "config.json").read_text())["force_upcast"] is True
