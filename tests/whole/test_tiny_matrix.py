"""The matrix of every family, compiled by blocks or not, quantized or not: nothing ends in an error.

    diffopt run -m 'model=glob(*,exclude=[local,hub,tiny])' model.weights=tiny compile=none,regional \\
      quant=none,int8_dynamic

One option for each class of denoisers, here in one process and with a compiler that only captures. Two of them also as
the real command: a process for each cell, and code that inductor generates.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import families, tiny
from support.tiny_families import FAMILIES

from diffopt.config.resolve import compose_requests
from diffopt.config.smoke import CAPTURE
from diffopt.pipeline.build import build_pipelines, verify_steps
from diffopt.pipeline.meter import Meter
from diffopt.recipe.plan import Plan, make_plan

pytestmark = pytest.mark.slow
CELLS = [(f"compile={c}", f"quant={q}") for c, q in itertools.product(("none", "regional"), ("none", "int8_dynamic"))]
NO_BLOCKS = "deepfloyd_if"  # the UNets of its first two stages have no block of the kind that repeats


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.set_num_threads(1)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def planned(option: str, *words: str) -> Plan:
    capture = CAPTURE if "compile=regional" in words else ()
    (request,) = compose_requests([*tiny(option), "hardware=cpu", "measure=quick", *words, *capture])
    return make_plan(request.cell)


def test_every_class_of_denoisers_is_here() -> None:
    found = {name: {m.denoiser_class for m in planned(name).cell.recipe.model.stages} for name in families()}
    assert set().union(*found.values()) == set().union(*(found[option] for option in FAMILIES))


@pytest.mark.parametrize("words", CELLS, ids=" ".join)
@pytest.mark.parametrize("option", FAMILIES)
def test_a_cell_works_or_its_plan_says_why_not(option: str, words: tuple[str, str]) -> None:
    plan = planned(option, *words)
    if option == NO_BLOCKS and "compile=regional" in words:
        assert plan.reasons
        assert all("has no blocks that repeat" in reason for reason in plan.reasons)
        return
    assert plan.reasons == []
    pipes = build_pipelines(plan)
    meter = Meter(pipes, plan.cell)
    meter.call()
    meter.call()
    effects = {effect.group: effect.numbers for effect in verify_steps(plan, pipes)}
    assert {"compile", "quant"} & effects.keys() == {
        group for group, name in (word.split("=") for word in words) if name != "none"
    }
    meter.samples()  # where anything is compiled in them, they raise
    assert meter.complaints() == []


def test_the_command_gives_a_row_for_each_cell(diffopt: Callable[..., Any], tmp_path: Path) -> None:
    words = ("quant=none,int8_dynamic", "hardware=cpu", "measure=quick", "study=matrix")
    for option, compiled in (("flux_dev", "none,regional"), (NO_BLOCKS, "regional")):
        done = diffopt("run", "-m", *tiny(option), f"compile={compiled}", *words)
        assert done.returncode == 0, done.stderr[-2000:]
    rows = [
        json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("studies/matrix/cells/*/*/result.json")
    ]
    told = {(row["choices"]["model"], row["choices"]["compile"], row["choices"]["quant"]): row for row in rows}
    assert len(told) == len(rows) == 6
    refused = {key for key, row in told.items() if row["status"] == "refused"}
    assert refused == {(NO_BLOCKS, "regional", quant) for quant in ("none", "int8_dynamic")}
    assert {row["status"] for key, row in told.items() if key not in refused} == {"ok"}
    assert all("has no blocks that repeat" in told[key]["reason"] for key in refused)
