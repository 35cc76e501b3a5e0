"""What a cell's pictures are compared with: the reference, and it under changes that nobody calls an optimization."""

from __future__ import annotations

import pytest
from support.rows import a_cell

from diffopt.recipe.quality import comparisons_of_cell, drawing_id

OPTIMIZED = ("quant=int8_dynamic", "fuse=qkv", "compile=default", "memory=model_offload", "layout=channels_last")


def test_the_reference_draws_the_same_without_any_optimization() -> None:
    cell = a_cell("quality=fast", "scheduler=euler", "workload.batch_size=2", *OPTIMIZED)
    reference = comparisons_of_cell(cell).reference
    assert reference.problems == ()
    assert [group for group, _ in reference.steps] == ["precision", "memory", "scheduler"]
    assert reference.cell.recipe.scheduler == cell.recipe.scheduler
    assert (reference.cell.workload, reference.cell.quality) == (cell.workload, cell.quality)
    assert reference.cell.id != cell.id


def test_a_reference_runs_in_the_models_customary_precision() -> None:
    cell = a_cell("quality=fast", "model=flux_dev", "precision=fp32")
    found = comparisons_of_cell(cell)
    assert found.reference.cell.choices["precision"] == "bf16"
    assert found.floors["precision"].cell.recipe.precision == cell.recipe.precision


@pytest.mark.parametrize(
    ("words", "floors"),
    [
        ((), {"attention": "vanilla"}),
        (("precision=bf16",), {"attention": "vanilla", "precision": "auto"}),
        (("model=flux_dev", "model.weights=tiny"), {"attention": "math"}),
    ],
)
def test_each_floor_changes_one_thing_of_the_reference(words: tuple[str, ...], floors: dict[str, str]) -> None:
    found = comparisons_of_cell(a_cell("quality=fast", *words))
    assert {name: plan.cell.choices["attention"] for name, plan in found.floors.items()} == floors
    for name, plan in found.floors.items():
        assert plan.problems == ()
        before, after = found.reference.cell.recipe, plan.cell.recipe
        assert {part for part in type(after).model_fields if getattr(before, part) != getattr(after, part)} == {name}


def test_cells_share_their_reference_and_how_they_are_measured_makes_no_other_pictures() -> None:
    words = ("quality=fast", "fuse=qkv")
    cells = [a_cell(*words), a_cell(*words, "measure=standard"), a_cell(*words, "quality.require=high")]
    assert len({drawing_id(cell) for cell in cells}) == 1
    others = [a_cell(*words, more) for more in ("workload.steps=3", "quality.seeds=[1]", "workload.batch_size=2")]
    assert len({drawing_id(cell) for cell in [*cells, *others]}) == 4
    references = {drawing_id(comparisons_of_cell(a_cell("quality=fast", word)).reference.cell) for word in OPTIMIZED}
    assert references == {drawing_id(a_cell("quality=fast"))}


def test_what_is_accepted_is_no_part_of_the_id() -> None:
    assert a_cell("quality=fast", "quality.require=high").id == a_cell("quality=fast").id != a_cell().id
