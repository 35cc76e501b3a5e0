"""Points of a sweep: Hydra's own expansion of the command line, joined with a named matrix from ``conf/sweep``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError

from diffopt.config.composed import Composed
from diffopt.config.composer import Composer
from diffopt.config.origins import Origin, origins_of_groups
from diffopt.errors import UsageError
from diffopt.recipe.explain import explain_invalid_recipe
from diffopt.recipe.recipe import STEP_GROUPS
from diffopt.schema.record import Frozen
from diffopt.schema.words import hydra_literal

Scalar = str | int | float | bool


class Amendment(Frozen):
    """What the points that match all keys of ``where`` choose besides."""

    where: Annotated[dict[str, Scalar], Field(min_length=1)]
    choose: Annotated[dict[str, Scalar], Field(min_length=1)]


class Matrix(Frozen):
    """A named sweep. Keys are those of the command line: groups (``compile``) or values (``workload.batch_size``)."""

    axes: dict[str, Annotated[tuple[Scalar, ...], Field(min_length=1)]]  # every combination
    zip: tuple[dict[str, Scalar], ...]  # rows whose keys change together; combined with the axes
    exclude: tuple[dict[str, Scalar], ...]  # a point that matches all keys of one of these is left out
    amend: tuple[Amendment, ...] = ()  # where some points need one choice more; of two for a key, the later one

    @property
    def keys(self) -> frozenset[str]:
        """Keys of the axes and of the rows."""
        return frozenset(self.axes) | {key for row in self.zip for key in row}

    def points(self, fixed: frozenset[str]) -> list[list[str]]:
        """All points as overrides, without the keys in ``fixed`` (the command line's choice beats the matrix)."""
        axes = [[{key: value} for value in values] for key, values in self.axes.items() if key not in fixed]
        rows = [{key: value for key, value in row.items() if key not in fixed} for row in self.zip] or [{}]
        points = []
        for parts in itertools.product(*axes, rows):
            point: dict[str, Scalar] = {}
            for part in parts:
                point.update(part)
            overrides = _overrides(point)
            if overrides not in points:
                points.append(overrides)
        return points

    def amendments(self, composed: Composed, fixed: frozenset[str]) -> list[str]:
        """Overrides that ``composed`` needs besides, without the keys in ``fixed``."""
        chosen: dict[str, Scalar] = {}
        for rule in self.amend:
            if all(_matches(composed, key, value) for key, value in rule.where.items()):
                chosen.update((key, value) for key, value in rule.choose.items() if key not in fixed)
        return _overrides(chosen)

    def excludes(self, composed: Composed) -> bool:
        return any(all(_matches(composed, key, value) for key, value in rule.items()) for rule in self.exclude)


def read_sweep_matrix(composer: Composer, name: str) -> Matrix:
    """The named matrix. Raises UsageError when there is none or when it is malformed."""
    data = composer.read_option("sweep", name)
    try:
        matrix = Matrix.from_plain({"axes": {}, "zip": [], "exclude": [], **data})
    except ValidationError as error:
        raise UsageError(f"{composer.option_file('sweep', name)}: {explain_invalid_recipe(error)}") from error
    place = composer.option_file("sweep", name)
    if not all(matrix.exclude):
        raise UsageError(f"{place}: an empty exclude rule would leave nothing.")
    if twice := sorted(set(matrix.axes) & {key for row in matrix.zip for key in row}):
        raise UsageError(f"{place}: '{twice[0]}' is an axis and stands in a row of zip; one of the two must go.")
    if twice := sorted(matrix.keys & {key for rule in matrix.amend for key in rule.choose}):
        raise UsageError(f"{place}: amend chooses '{twice[0]}', which every point has from an axis or a row.")
    return matrix


def split_sweep(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take ``sweep=NAME`` out of the overrides."""
    names = [text.split("=", 1)[1] for text in overrides if text.startswith("sweep=")]
    if len(names) > 1:
        raise UsageError(f"sweep is given {len(names)} times ({', '.join(names)}); give one named matrix.")
    if names and ("," in names[0] or not names[0]):
        raise UsageError(f"sweep={names[0]}: give the name of one matrix (diffopt ls sweep lists them).")
    return (names[0] if names else None), [text for text in overrides if not text.startswith("sweep=")]


def expand(composer: Composer, overrides: Sequence[str]) -> list[Composed]:
    """All points of ``-m``, composed, excluded ones left out. The command line's keys beat those of the matrix."""
    name, rest = split_sweep(overrides)
    typed = composer.expand(rest)
    if name is None:
        return [composer.compose(point) for point in typed]
    matrix = read_sweep_matrix(composer, name)
    keys = frozenset(override.get_key_element() for override in composer.parse(rest))
    origin = composer.origin("sweep", name)
    composed = [_point(composer, matrix, point, more, keys, origin) for point in matrix.points(keys) for more in typed]
    kept = [point for point in composed if not matrix.excludes(point)]
    if not kept:
        raise UsageError(f"sweep={name} leaves no cell: its exclude rules match all {len(composed)} points.")
    return kept


def on_recipe(composer: Composer, point: Composed, name: str) -> Composed:
    """A recipe where a point has its own: on the same model and machine, with the same workload, measured alike."""
    steps = frozenset(STEP_GROUPS)
    kept = frozenset(point.data) - steps
    words = [f"{group}={point.choices[group]}" for group in sorted(kept & point.choices.keys() - {"workload"})]
    found = composer.compose([f"recipe={name}", *words])
    return Composed(
        {**found.data, **{section: point.data[section] for section in kept}},
        {**found.choices, **{group: point.choices[group] for group in kept & point.choices.keys()}},
        typed=frozenset(key for key in point.typed if key.split(".")[0] in kept),
        chosen=found.chosen | (point.chosen & kept),
        origins={**origins_of_groups(found.origins, steps), **origins_of_groups(point.origins, kept)},
    )


def _point(
    composer: Composer, matrix: Matrix, point: list[str], typed: list[str], fixed: frozenset[str], origin: Origin | None
) -> Composed:
    composed = composer.compose(typed, point, origin)
    more = matrix.amendments(composed, fixed)
    return composer.compose(typed, [*point, *more], origin) if more else composed


def _overrides(point: Mapping[str, Scalar]) -> list[str]:
    return [f"{key}={hydra_literal(value)}" for key, value in point.items()]


def _matches(composed: Composed, key: str, value: Scalar) -> bool:
    if key in composed.choices:
        return composed.choices[key] == value
    node: Any = composed.data
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            if node is not composed.data:
                return False  # an option without this key, such as compile.mode where compile=none
            raise UsageError(
                f"A sweep excludes or amends by '{key}', which is neither a group nor a key of the configuration."
            )
        node = node[part]
    return bool(node == value)
