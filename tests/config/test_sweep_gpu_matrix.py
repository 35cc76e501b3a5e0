"""The sweep for a rented GPU: everything in it works there, what is worth most comes first, pages' cells are in it."""

from __future__ import annotations

import pytest

from diffopt.config.resolve import compose_requests
from diffopt.machine.hardware import why_hardware_is_not_here
from diffopt.recipe.cell import Cell
from diffopt.recipe.plan import make_plan

LADDER = "sweep=accelerate_inference"


def cells(*words: str) -> list[Cell]:
    return [request.cell for request in compose_requests(words, multirun=True)]


@pytest.fixture(scope="module", params=["h100", "h200"])
def swept(request: pytest.FixtureRequest) -> list[Cell]:
    return cells("sweep=gpu_matrix", f"hardware={request.param}")


def kind(cell: Cell, group: str) -> str:
    return str(getattr(cell.recipe, group).kind)


def test_every_cell_works_on_a_hopper_without_a_download(swept: list[Cell]) -> None:
    assert len({cell.id for cell in swept}) == len(swept) == 45
    for cell in swept:
        assert not make_plan(cell).problems, cell.choices
        assert {stage.weights for stage in cell.recipe.model.stages} == {"random"}


def test_the_goals_come_first_then_what_they_are_compared_with(swept: list[Cell]) -> None:
    goals, before = swept[:6], swept[6:10]
    models = ["sd15", "sdxl", "sdxl", "flux_dev", "flux_dev", "flux_schnell"]
    assert [cell.recipe.model.name for cell in goals] == models
    assert [cell.choices["quant"] for cell in goals] == [
        *("none", "none", "fp8_dynamic_row", "none", "fp8_dynamic_row", "fp8_dynamic_row")
    ]
    assert {kind(cell, "compile") for cell in goals} == {"full", "regional"}
    assert {kind(cell, "compile") for cell in before} == {"none"}
    for cell in goals:  # no sampler that waits for the GPU, and a reference for a report's speed-up
        assert cell.choices["scheduler"] in ("euler", "flow_euler")
        (reference,) = [one for one in before if one.recipe.model == cell.recipe.model]
        assert reference.choices["scheduler"] == cell.choices["scheduler"]
        assert (reference.workload, reference.measure) == (cell.workload, cell.measure)
        assert reference.recipe.precision.dtype == cell.recipe.model.dtype  # type: ignore[attr-defined]


def test_what_searches_kernels_is_last(swept: list[Cell]) -> None:
    searching = [cell for cell in swept if "max_autotune" in cell.choices["compile"]]
    assert len(searching) == 4
    assert swept[-4:] == searching


def test_a_scale_per_row_comes_before_one_per_tensor(swept: list[Cell]) -> None:
    quant = [cell.choices["quant"] for cell in swept if cell.recipe.model.name == "flux_dev"]
    assert quant.index("fp8_dynamic_row") < quant.index("fp8_dynamic")


def test_the_ladder_is_whole_and_measured_alike(swept: list[Cell]) -> None:
    gpu = swept[0].recipe.hardware.name
    page = cells(LADDER, f"hardware={gpu}", "model.weights=random")
    own = {cell.recipe.id: cell for cell in swept if cell.workload == page[0].workload}
    assert len(page) == 6
    assert len({own[cell.recipe.id].measure for cell in page}) == 1


def test_cells_of_the_page_have_its_ids(swept: list[Cell]) -> None:
    gpu = swept[0].recipe.hardware.name
    page = {
        cell.id
        for cell in cells("sweep=pytorch2", f"hardware={gpu}", "model.weights=random", "model=sd15", "workload=txt2img")
    }
    assert len(page) == 6
    assert page < {cell.id for cell in swept}


def test_what_is_typed_wins() -> None:
    small = cells(
        "sweep=gpu_matrix", "hardware=cpu", "model.weights=tiny", "precision=fp32", "compile=none", "model=sd15"
    )
    assert {stage.weights for cell in small for stage in cell.recipe.model.stages} == {"tiny"}
    assert why_hardware_is_not_here(small[0].recipe.hardware) is None
