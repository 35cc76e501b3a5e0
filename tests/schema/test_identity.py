"""Ids: every field that decides something is in them, and no field that only describes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import ValidationError
from support.rows import a_cell

from diffopt.config.resolve import cell_from_config
from diffopt.errors import UsageError
from diffopt.machine.paths import shipped_conf
from diffopt.recipe.cell import Cell
from diffopt.recipe.recipe import STEP_GROUPS
from diffopt.schema.hardware import Hardware
from diffopt.schema.model import Model
from diffopt.schema.record import Descriptive, Frozen, descriptive_fields, record_identity

GROUPS = ("model", "hardware", *(group for group in STEP_GROUPS if group != "lora"), "workload", "measure")
# a folder, a repository, this machine
NEED_MORE = {("model", "local"), ("model", "hub"), ("hardware", "auto")}
OPTIONS = [
    (group, path.stem)
    for group in GROUPS
    for path in sorted((shipped_conf() / group).glob("*.yaml"))
    if (group, path.stem) not in NEED_MORE
]
DESCRIBES = {
    "model": {
        "path",
        "height",
        "width",
        "steps",
        "guidance",
        "prompt",
        "dtype",
        "parameters",
        "head_sizes",
        "vae_head_size",
        "task",
        "licence",
        "gated",
        "frames",
        "fps",
        "vae_factor",
        "sampler_needs",
        "train_timesteps",
        "activations",
        "size_limit",
    },
    "hardware": {"match", "sms", "memory_gib", "bandwidth_gb_s", "peak_tflops", "slurm", "ray_accelerator"},
    "attention": {"evidence", "install"},
}


def paths(record: Frozen) -> Iterator[tuple[str, ...]]:
    """The way to every value in a record, at every depth."""
    for name, value in record:
        if isinstance(value, Frozen):
            yield from ((name, *rest) for rest in paths(value))
        else:
            yield (name,)


def at(record: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        record = getattr(record, name)
    return record


def with_value(record: Any, path: tuple[str, ...], value: Any) -> Any:
    """A copy with another value, not validated, and without what the original has computed."""
    name, *rest = path
    inner = with_value(getattr(record, name), tuple(rest), value) if rest else value
    return type(record).model_construct(**{**dict(record), name: inner})


def another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, "another")
    return "another" if value is None else value + ("x" if isinstance(value, str) else 1)


def section(cell: Cell, group: str) -> tuple[str, ...]:
    return (group,) if group in ("workload", "measure") else ("recipe", group)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_what_decides_is_in_the_id_and_what_describes_is_not(group: str, option: str) -> None:
    cell = a_cell(f"{group}={option}")
    where = section(cell, group)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pydantic's, about values that are not valid
        for path in paths(at(cell, where)):
            changed = with_value(cell, (*where, *path), another(at(cell, (*where, *path))))
            describes = path[0] in DESCRIBES.get(group, ()) or (group == "workload" and path[-1] == "path")
            assert (changed.id == cell.id) is describes, path
            assert (changed.recipe.id == cell.recipe.id) is (describes or where[0] != "recipe"), path


def test_the_marks_are_where_they_should_be() -> None:
    assert descriptive_fields(Model) == DESCRIBES["model"]
    assert descriptive_fields(Hardware) == DESCRIBES["hardware"]
    assert descriptive_fields(Cell) == {"choices", "notes"}


class Inner(Frozen):
    value: int
    note: Annotated[str, Descriptive()]


class Record(Frozen):
    many: tuple[Inner, ...]
    by_name: dict[str, Inner]
    later: int | None = None
    later_note: Annotated[Inner | None, Descriptive()] = None


def test_identity_looks_into_tuples_and_mappings_and_leaves_later_fields_at_their_default() -> None:
    inner = Inner(value=1, note="a")
    record = Record(many=(inner, inner), by_name={"x": inner}, later_note=inner)
    assert record_identity(record) == {"many": [{"value": 1}, {"value": 1}], "by_name": {"x": {"value": 1}}}
    assert record_identity(record.model_copy(update={"later": 2}))["later"] == 2


def test_a_protocol_that_would_take_fewer_samples_than_it_says_is_refused() -> None:
    data = a_cell().model_dump(mode="json")
    data["measure"] |= {"samples": 20, "max_samples": 3}
    with pytest.raises(UsageError, match=r"measure.samples=20: more than measure.max_samples=3") as caught:
        cell_from_config(data)
    assert "set measure.max_samples to 20 or more" in str(caught.value)


def test_code_is_kept_for_recipes_that_differ_in_their_sampler_alone() -> None:
    plain = a_cell().recipe
    assert (a_cell("scheduler=ddim").recipe.code_id, a_cell("scheduler=ddim").recipe.id != plain.id) == (
        plain.code_id,
        True,
    )
    others = (
        "precision=bf16",
        "attention=math",
        "layout=channels_last",
        "vae=slicing",
        "compile=aot",
        "model=sd15",
    )
    assert len({plain.code_id, *(a_cell(word).recipe.code_id for word in others)}) == 1 + len(others)
    (site,) = a_cell("scheduler=ddim").sites
    assert site.code_id == plain.code_id


class _Point(Frozen):
    place: tuple[int, ...]
    name: str | None = None


def test_a_record_of_plain_data_is_strict() -> None:
    assert _Point.from_plain({"place": [1, 2]}) == _Point(place=(1, 2))
    for wrong in ({"place": [True]}, {"place": ["1"]}, {"place": [1.0]}, {"place": [], "more": 1}, {}, [], None):
        with pytest.raises(ValidationError):
            _Point.from_plain(wrong)


def test_records_are_made_of_plain_data_in_one_way() -> None:
    root = Path(__file__).parents[2]
    files = [*(root / "diffopt").rglob("*.py"), *(root / "scripts").rglob("*.py")]
    found = [path for path in files if "model_validate_json(json.dumps(" in path.read_text(encoding="utf-8")]
    assert found == [root / "diffopt" / "schema" / "record.py"]
