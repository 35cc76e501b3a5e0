"""``reference=``: which cell a sweep measures first, and that it is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from diffopt.config.request import Request
from diffopt.config.resolve import compose_requests
from diffopt.errors import UsageError

CPU = "hardware=cpu"


def asked(*words: str, multirun: bool = True, folders: tuple[Path, ...] = ()) -> list[Request]:
    return compose_requests([CPU, *words], multirun=multirun, folders=folders)


def test_a_recipe_that_nobody_asked_for_is_measured_first_once_for_each_workload() -> None:
    words = ("compile=none,regional", "workload.batch_size=1,2", "quant=int8_weight")
    plain = asked(*words)
    requests = asked(*words, "reference=recipe:flux")
    first, rest = requests[:2], requests[2:]
    assert [request.cell.id for request in rest] == [request.cell.id for request in plain]
    assert [request.cell.workload.batch_size for request in first] == [1, 2]
    assert all(request.cell.choices["recipe"] == "flux" for request in first)
    alone = asked("recipe=flux", "workload.batch_size=1,2")
    assert [request.cell.id for request in first] == [request.cell.id for request in alone], "nothing else is in it"


def test_a_recipe_keeps_the_model_and_how_it_is_measured() -> None:
    words = ("model=sd15", "model.weights=random", "measure=quick", "workload.steps=7", "quant=int8_weight,none")
    cell = asked(*words, "reference=recipe:flux")[0].cell
    assert (cell.recipe.model.name, cell.recipe.model.weights, cell.workload.steps) == ("sd15", "random", 7)
    assert cell.choices["measure"] == "quick"
    assert (cell.choices["quant"], cell.recipe.quant.kind) == ("fp8_dynamic", "fp8_dynamic")


def test_one_that_is_there_comes_first_and_only_once() -> None:
    words = ("recipe=baseline,flux,pytorch2",)
    found = [request.cell.choices["recipe"] for request in asked(*words, "reference=recipe:flux")]
    assert found == ["flux", "baseline", "pytorch2"]
    last = asked(*words)[-1].cell
    assert asked(*words, f"reference=cell:{last.id}")[0].cell.id == last.id


@pytest.mark.parametrize("reference", ["auto", "plain", "first"])
def test_others_change_no_order(reference: str) -> None:
    words = ("compile=regional,none", f"reference={reference}")
    assert [request.cell.choices["compile"] for request in asked(*words)] == ["regional", "none"]


def test_a_single_cell_is_run_alone() -> None:
    (request,) = asked("reference=recipe:flux", multirun=False)
    assert str(request.reference) == "recipe:flux"


def test_mistakes() -> None:
    with pytest.raises(UsageError, match="recipe=nonesuch"):
        asked("reference=recipe:nonesuch", "fuse=qkv,none")
    with pytest.raises(UsageError, match="recipe=nonesuch"):
        asked("reference=recipe:nonesuch", multirun=False)
    with pytest.raises(UsageError, match="write recipe:NAME"):
        asked("reference=fastest", "fuse=qkv,none")
    with pytest.raises(UsageError, match="reference are the same for a whole sweep"):
        asked("reference=first,plain")


def test_a_recipe_cannot_be_composed_beside_a_recipe_file(
    tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "f.yaml").write_text(cli("show", CPU)[1])
    for more in ([], ["-m", "fuse=qkv,none"]):
        code, _, err = cli("plan", "--recipe", str(tmp_path / "f.yaml"), *more, "reference=recipe:flux")
        assert code == 2
        assert "reference=recipe:flux composes a recipe, and --recipe FILE stands in the place of one" in err


def test_a_matrix_may_name_one(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    matrix = {"axes": {"fuse": ["qkv", "none"]}, "zip": [{"reference": "recipe:flux"}], "exclude": []}
    (tmp_path / "sweep" / "mine.yaml").write_text(yaml.safe_dump(matrix))
    found = asked("sweep=mine", folders=(tmp_path,))
    assert [request.cell.choices["recipe"] for request in found] == ["flux", "baseline", "baseline"]


def test_a_plan_and_a_report_take_it(cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = cli("plan", "-m", CPU, "fuse=qkv,none", "reference=recipe:flux")
    assert (code, err) == (0, "")
    assert "3 cells: 2 ok, 1 refused" in out
    code, out, err = cli("report", "x", "--reference", "fastest")
    assert code == 2
    assert "--reference=fastest: write recipe:NAME" in err
