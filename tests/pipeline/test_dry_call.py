"""A call without weights: it refuses nothing that works, and tells what does not before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import any_pipelines
from support.misfits import MISFITS, controlnet, plain
from support.tiny import every_task
from support.tiny_families import cell, drawn, pipelines

from diffopt.config.resolve import compose_requests
from diffopt.pipeline.build import build_pipelines
from diffopt.pipeline.dry_call import answer_dry_call
from diffopt.pipeline.failure import describe_pipeline_error
from diffopt.pipeline.weightless import Networks, WithoutValues
from diffopt.recipe.cell import Cell
from diffopt.recipe.dry_call import DryAnswer, DryCall, StageFiles, plan_with_dry_answer
from diffopt.recipe.plan import make_plan

FAST = ["sdxl", "wan21_t2v_1_3b"]
AT_ONCE = ["unet", "sampler", "positions"]
ALONE = [option for option in every_task() if option != "deepfloyd_if"]  # a folder is one stage
EVERY = [option if option in FAST else pytest.param(option, marks=pytest.mark.slow) for option in ALONE]
TWO = ("workload.batch_size=2", "workload.guidance=5")
UNCLEAR = {"mochi": "autocast", "wan_i2v": "ftfy"}  # asks autocast for a device of that name; a package is not here


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def local(folder: Path, *words: str) -> Cell:
    asked = ["model=local", f"model.path={folder}", "hardware=cpu", "measure=quick", *words]
    return compose_requests(asked)[0].cell


def answer(asked: Cell) -> DryAnswer:
    files = tuple(
        StageFiles(pipeline=str(stage.path), controlnet=None, cached=False) for stage in asked.recipe.model.stages
    )
    return answer_dry_call(DryCall(number=0, cell=asked, files=files))


def saved(pipe: Any, folder: Path) -> Path:
    pipe.save_pretrained(folder)
    return folder


def as_local(option: str, folder: Path, *words: str) -> Cell:
    """The same call of the same pipeline, from a folder."""
    asked = cell(option)
    (pipe,) = pipelines(asked)
    model, workload = asked.recipe.model, asked.workload
    said = [f"workload={workload.task}", f"workload.height={workload.height}", f"workload.width={workload.width}"]
    said += [f"workload.steps={workload.steps}", f"workload.guidance={workload.guidance}"]
    said += [] if workload.frames is None else [f"workload.frames={workload.frames}"]
    if model.embeddings is not None:
        said.append(f"model.embeddings={{tokens:{model.embeddings.tokens},width:{model.embeddings.width}}}")
    call = {key: value for key, value in model.call.model_dump(mode="json").items() if value is not None}
    said += [
        f"model.call.{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in call.items()
    ]
    return local(saved(pipe, folder), *said, *words)


@pytest.mark.parametrize("option", EVERY)
@pytest.mark.parametrize("words", [(), pytest.param(TWO, marks=pytest.mark.slow)])
def test_what_works_is_called_without_weights(option: str, words: tuple[str, ...], tmp_path: Path) -> None:
    """Of every family in every task the answer is conclusive."""
    assert answer(as_local(option, tmp_path, *words)) == DryAnswer(outcome="ok")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", any_pipelines.BUILDERS)
def test_families_that_no_option_names(name: str, tmp_path: Path) -> None:
    size = () if name in ("mochi", "wan_i2v") else ("workload.height=64", "workload.width=64")
    told = answer(local(saved(any_pipelines.build(name), tmp_path), "workload.steps=2", *size))
    assert told.outcome == ("unclear" if name in UNCLEAR else "ok")
    assert UNCLEAR.get(name, "") in told.says


def test_a_controlnet_that_fits(tmp_path: Path) -> None:
    assert answer(local(saved(controlnet(), tmp_path), "workload.steps=2")).outcome == "ok"


@pytest.mark.parametrize(
    "name", [name if name in AT_ONCE else pytest.param(name, marks=pytest.mark.slow) for name in MISFITS]
)
def test_what_a_plan_passes_and_a_run_does_not(name: str, tmp_path: Path) -> None:
    build, words, said = MISFITS[name]
    asked = local(saved(build(), tmp_path), "workload.steps=3", *words)
    assert make_plan(asked).reasons == []
    told = answer(asked)
    assert told.outcome == "fails"
    (reason,) = plan_with_dry_answer(make_plan(asked), told).reasons
    assert reason.startswith("model=local")
    assert "\n" not in reason
    assert "--no-deep`" in reason
    assert "weightless.py" not in reason
    for words_of_reason in said:
        assert words_of_reason in reason
    assert fails(asked)


def fails(asked: Cell) -> bool:
    """Whether a run with weights does; each library has exceptions of its own."""
    try:
        drawn(build_pipelines(make_plan(asked)), asked)
    except Exception:
        return True
    return False


def test_no_weights_are_read(tmp_path: Path) -> None:
    asked = local(saved(plain(), tmp_path))
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    assert answer(asked).outcome == "ok"


def test_a_file_that_is_missing_is_a_fault_of_a_folder_and_not_of_the_cache(tmp_path: Path) -> None:
    asked = local(saved(plain(), tmp_path))
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    files = StageFiles(pipeline=str(tmp_path), controlnet=None, cached=True)
    assert answer(asked).outcome == "fails"
    told = answer_dry_call(DryCall(number=0, cell=asked, files=(files,)))
    assert (told.outcome, told.lasting) == ("unclear", False)


def test_values_decide_where_no_weight_has_touched_them() -> None:
    table, ids = torch.empty(8, 4, device="meta"), torch.tensor([[1, 2, 0]])
    with WithoutValues():
        mask = ids != torch.zeros_like(ids, device="meta")
        assert mask.sum().item() == 2
        read = torch.nn.functional.embedding(ids, table)
        assert (read.is_meta, tuple(read.shape)) == (True, (1, 3, 4))
        assert (read + torch.ones(1, 3, 1)).is_meta
        assert tuple(read[mask].shape) == (2, 4)
        assert torch.equal(read.cpu(), torch.zeros(1, 3, 4))
        with pytest.raises(IndexError, match="9 is looked up in a table of 8 rows"):
            torch.nn.functional.embedding(torch.tensor([9]), table)
        with pytest.raises(RuntimeError, match="meta"):
            read.sum().item()


def test_a_network_is_called_once_for_all_steps() -> None:
    pipe = plain()
    pipe.unet.to("meta")
    worked: list[int] = []
    pipe.unet.conv_in.register_forward_hook(lambda *_: worked.append(1))
    networks = Networks()
    with networks.standing_in([pipe]), torch.no_grad():
        for time in (3, 2, 1):
            made = pipe.unet(torch.ones(1, 4, 16, 16), torch.tensor(time), torch.ones(1, 16, 32)).sample
            assert (made.device.type, made.abs().sum().item()) == ("cpu", 0)
    assert len(worked) == 1
    assert type(pipe.unet).__name__ == "UNet2DConditionModel"


def test_an_error_is_told_from_where_the_library_raised_it() -> None:
    with pytest.raises(RuntimeError) as caught, WithoutValues():
        torch.nn.functional.linear(torch.ones(2, 3), torch.empty(4, 5, device="meta"))
    assert "test_dry_call.py" in describe_pipeline_error(caught.value)
