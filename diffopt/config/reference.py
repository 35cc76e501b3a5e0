"""``reference=``: the cells that others are compared with, and that a sweep measures them first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from diffopt.config.composed import Composed
from diffopt.config.composer import Composer
from diffopt.config.request import Request
from diffopt.config.sweep import on_recipe
from diffopt.errors import UsageError
from diffopt.recipe.recipe import STEP_GROUPS
from diffopt.schema.reference import Reference


def read_reference(composer: Composer, text: Any, key: str = "reference") -> Reference:
    """What ``reference=`` or ``--reference`` names. Raises UsageError, also for a recipe that cannot be composed."""
    found = Reference.from_text(text, key)
    if found.kind != "recipe":
        return found
    if composer.base is not None:
        raise UsageError(
            f"{key}={found} composes a recipe, and --recipe FILE stands in the place of one: write {key}=first, plain "
            "or cell:ID."
        )
    composed = composer.compose([f'recipe="{found.name}"'])
    return replace(found, options=tuple((group, composed.choices[group]) for group in STEP_GROUPS))


def with_references_first(
    composer: Composer,
    request_of: Callable[[Composed], Request],
    points: Sequence[Composed],
    found: Sequence[Request],
) -> list[Request]:
    """The cells that others are compared with before these; those of a recipe also where nobody asked for them."""
    reference, first = found[0].reference, []
    if reference.kind == "recipe":
        alike: list[tuple[Any, ...]] = []
        for point, request in zip(points, found, strict=True):
            cell = request.cell
            asked = (cell.recipe.model, cell.recipe.hardware, cell.workload, cell.measure, cell.runtime)
            if asked not in alike:
                alike.append(asked)
                first.append(request_of(on_recipe(composer, point, reference.name)))
    elif reference.kind == "cell":
        first = [request for request in found if request.cell.id == reference.name]
    there = {request.cell.id for request in first}
    return [*first, *(request for request in found if request.cell.id not in there)]
