"""A golden plan per shipped recipe, so that a changed default shows every recipe it moves.

Refresh with: pytest tests/recipe/test_golden_plans.py --update-golden
"""

from __future__ import annotations

from pathlib import Path

import pytest

from diffopt.config import shipped_conf
from diffopt.config.resolve import compose_requests
from diffopt.recipe import lock
from diffopt.recipe.plan import make_plan

GOLDEN = Path(__file__).parent / "golden"
RECIPES = sorted(path.stem for path in (shipped_conf() / "recipe").glob("*.yaml"))
TARGETS = {"sd15": ("a100", "t4"), "sdxl": ("h100", "cpu")}


def described(recipe: str) -> str:
    """What is frozen: the resolved recipe, and its plan on GPUs where it works and where it does not."""
    (request,) = compose_requests([f"recipe={recipe}", "model=sd15", "model.weights=random", "hardware=a100"])
    parts = [lock.recipe_to_yaml(request.cell)]
    for model, places in TARGETS.items():
        for place in places:
            (case,) = compose_requests(
                [f"recipe={recipe}", f"model={model}", "model.weights=random", f"hardware={place}"]
            )
            parts.append(str(make_plan(case.cell)))
    return "\n\n".join(parts) + "\n"


@pytest.mark.parametrize("recipe", RECIPES)
def test_golden_plan(recipe: str, update_golden: bool) -> None:
    path = GOLDEN / f"{recipe}.txt"
    now = described(recipe)
    if update_golden:
        path.write_text(now, encoding="utf-8")
    assert path.is_file(), f"{path} is missing; make it with --update-golden and commit it"
    assert now == path.read_text(encoding="utf-8")


def test_no_golden_plan_is_left_over() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == RECIPES
