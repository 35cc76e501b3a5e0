"""Where the rows of a study stand in the tables of a published benchmark.

Everything is read from the rows: model, task, batch size and compile mode from the cell, torch's version and the
device from the environment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from packaging.version import InvalidVersion, Version

from diffopt.recipe.cell import Cell
from diffopt.recipe.labels import cell_label_line, cell_labels, option_of_label
from diffopt.results.published.figures import Figure, is_of_published_family, published_figures
from diffopt.results.published.layout import COMPILED, PLAIN
from diffopt.results.published.settings import published_sweep_cells, settings_unlike_published
from diffopt.results.result import Result
from diffopt.schema.runtime import CURRENT

# Groups whose option is a row or a column, while a value of theirs is neither; and the weights, which are in the name.
TOLD_ELSEWHERE = ("model", "model.weights", "compile")


@dataclass(frozen=True)
class Place:
    """A row of a study: the published pipeline that it is ``like``, and its table, row and column among ours."""

    result: Result
    like: Figure
    gpu: str
    pipeline: str
    torch: str
    mode: str
    unlike: Mapping[str, str]  # settings that are not the page's; see settings_unlike_published

    @property
    def name(self) -> str:
        """The pipeline without what tells rows of it apart."""
        model = self.result.cell["recipe"]["model"]
        if self.is_the_published_model:
            return self.like.pipeline
        return f"{self.like.pipeline} ({model['name']}{', tiny weights' if model['weights'] == 'tiny' else ''})"

    @property
    def is_the_published_model(self) -> bool:
        """Whether the row's model is the one that was measured, at its size, and not one that stands for it."""
        model = self.result.cell["recipe"]["model"]
        return bool(model["name"] == self.like.option and model["weights"] != "tiny")

    @property
    def hardware(self) -> str:
        return str(self.result.cell["recipe"]["hardware"]["name"])

    @property
    def batch_size(self) -> int:
        return int(self.result.cell["workload"]["batch_size"])

    @property
    def compiled(self) -> bool:
        return self.mode != PLAIN

    @property
    def spot(self) -> tuple[object, ...]:
        """What no two rows share in the end."""
        return self.gpu, self.batch_size, self.pipeline, self.torch, self.mode

    @property
    def column(self) -> tuple[object, ...]:
        """Sorts as on the page: without compile first, then from the oldest torch to the newest."""
        try:
            version = Version(self.torch.split()[1])
        except InvalidVersion:
            version = Version("0")
        return self.compiled, self.mode, version, self.torch


def places_on_published_page(results: Sequence[Result], name: str, sweep: Sequence[Cell]) -> list[Place]:
    """The places of those rows whose pipeline is on the page ``name``; tables and rows in the page's order.

    Args:
        sweep: the cells of the sweep that has the page's settings.
    """
    figures, page = published_figures(name), published_sweep_cells(sweep)
    known = [(result, like) for result in results if (like := published_counterpart(result, figures)) is not None]
    mine = [result for result, _ in known]
    gpus, torches, modes = _gpus(mine), _torches(mine), _modes(mine)
    found = []
    for (result, like), *column in zip(known, gpus, torches, modes, strict=True):
        gpu, torch, mode = column
        place = Place(result, like, gpu, like.pipeline, torch, mode, settings_unlike_published(result, page))
        found.append(replace(place, pipeline=place.name))
    gpu_order = list(dict.fromkeys(figure.hardware for figure in figures))
    row_order = list(dict.fromkeys((figure.model, figure.task) for figure in figures))

    def order(place: Place) -> tuple[object, ...]:
        gpu = gpu_order.index(place.hardware) if place.hardware in gpu_order else len(gpu_order)
        row = row_order.index((place.like.model, place.like.task))
        return gpu, place.hardware, place.gpu, place.batch_size, row, place.pipeline, place.column

    return sorted(_told_apart(found), key=order)


def published_counterpart(result: Result, figures: Sequence[Figure]) -> Figure | None:
    """A published figure of the row's model family and task; None when the page has none."""
    model = result.cell["recipe"]["model"]
    task = "cascade" if model.get("cascade") else result.cell["workload"]["task"]
    for figure in figures:
        if task == figure.task and is_of_published_family(model["name"], figure.model):
            return figure
    return None


def _gpus(results: Sequence[Result]) -> list[str]:
    """The device of each row by its name; one that never met its device is put with the only one of its hardware."""
    met: dict[str, set[str]] = {}
    for result in results:
        if result.environment.device.name:
            met.setdefault(result.cell["recipe"]["hardware"]["name"], set()).add(result.environment.device.name)
    found = []
    for result in results:
        hardware = result.cell["recipe"]["hardware"]["name"]
        devices = sorted(met.get(hardware, ()))
        found.append(result.environment.device.name or (devices[0] if len(devices) == 1 else hardware))
    return found


def _torches(results: Sequence[Result]) -> list[str]:
    """The torch of each row by its version, with its runtime where the study has several.

    A refused row did not start its runtime; it is put with the only version that the runtime's other rows have.
    """
    runtimes = [result.cell.get("runtime", {}).get("name", CURRENT.name) for result in results]
    versions = [result.environment.versions.get("torch", "not installed") for result in results]
    started: dict[str, set[str]] = {}
    for result, runtime, version in zip(results, runtimes, versions, strict=True):
        if result.status != "refused":
            started.setdefault(runtime, set()).add(version)
    found = []
    for result, runtime, version in zip(results, runtimes, versions, strict=True):
        known = sorted(started.get(runtime, ()))
        name = f"torch {known[0] if result.status == 'refused' and len(known) == 1 else version}"
        found.append(name if len(set(runtimes)) == 1 else f"{name} ({runtime})")
    return found


def _modes(results: Sequence[Result]) -> list[str]:
    """``no compile`` and ``compile`` as on the page; with several ways to compile, the option's name."""
    kinds = [result.cell["recipe"]["compile"]["kind"] for result in results]
    options = [
        PLAIN if kind == "none" else option_of_label(result.choices.get("compile", kind))
        for result, kind in zip(results, kinds, strict=True)
    ]
    several = len({option for option in options if option != PLAIN}) > 1
    return [option if option == PLAIN else f"compile={option}" if several else COMPILED for option in options]


def _told_apart(found: Sequence[Place]) -> list[Place]:
    """Rows that would stand in one cell get what tells them apart into their name.

    First what is not the page's setting, so that the page's own rows keep their name; then whatever differs; then the
    environment; at last the cell's id, which no two rows of one environment share.
    """
    rows = list(found)
    for name in (_by_settings, _by_differences, _by_environment, _by_id):
        named = []
        for pipeline in dict.fromkeys(place.pipeline for place in rows):
            members = [place for place in rows if place.pipeline == pipeline]
            named += name(members) if _crowded(members) else members
        rows = named
    return rows


def _by_settings(members: Sequence[Place]) -> list[Place]:
    """``compile=regional`` is the column already; ``compile.fullgraph=false`` stands nowhere else."""
    told = [[setting for setting in place.unlike if _key(setting) not in TOLD_ELSEWHERE] for place in members]
    return [_renamed(place, " ".join(settings)) for place, settings in zip(members, told, strict=True)]


def _by_differences(members: Sequence[Place]) -> list[Place]:
    differing = cell_labels([place.result.point for place in members])
    crowding = set[str]()
    for spot in dict.fromkeys(place.spot for place in members):
        here = [label for place, label in zip(members, differing, strict=True) if place.spot == spot]
        crowding |= {key for label in here for key in label if len({other.get(key) for other in here}) > 1}
    return [_renamed(place, _only(label, crowding)) for place, label in zip(members, differing, strict=True)]


def _only(label: Mapping[str, str], crowding: Collection[str]) -> str:
    """Without what differs between tables and columns alone, such as the slicing that a sweep gives large batches."""
    return cell_label_line({key: value for key, value in label.items() if key in crowding})


def _by_environment(members: Sequence[Place]) -> list[Place]:
    if len({place.result.env_id for place in members}) == 1:
        return list(members)
    return [_renamed(place, f"env {place.result.env_id}") for place in members]


def _by_id(members: Sequence[Place]) -> list[Place]:
    return [_renamed(place, f"cell {place.result.cell_id}") for place in members]


def _crowded(members: Sequence[Place]) -> bool:
    return max(Counter(place.spot for place in members).values()) > 1


def _renamed(place: Place, label: str) -> Place:
    return replace(place, pipeline=f"{place.pipeline}, {label}" if label else place.pipeline)


def _key(setting: str) -> str:
    return setting.partition("=")[0]
