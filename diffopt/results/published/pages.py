"""What ``report --published`` and ``report --like`` print and draw."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from diffopt.errors import UsageError
from diffopt.machine.paths import user_path
from diffopt.machine.temporary import temporary_folder
from diffopt.recipe.cell import Cell
from diffopt.results.published import layout
from diffopt.results.published.charts import chart_to_png, chart_to_text, charts_of_published, published_gpus_called
from diffopt.results.published.figures import published_figures, published_gpu_name, published_names
from diffopt.results.published.ladder import LADDERS, ladder_table
from diffopt.results.published.layout import Entry
from diffopt.results.published.like import Likeness, likeness_to_published
from diffopt.results.result import Result
from diffopt.schema.words import did_you_mean

Compose = Callable[[str], Sequence[Cell]]  # gives the cells of a shipped sweep by its name
Page = Callable[[Sequence[Result], Path | None, str | None, Compose], Iterator[str]]


def published_page(name: str, folder: Path | None, gpu: str | None) -> Iterator[str]:
    """The tables of a published benchmark, then its charts: :func:`_charts` has the last two arguments."""
    cells = layout.published_entries(published_figures(name))
    drawn = _charts(cells, folder, gpu)  # first, so that nothing is printed when they cannot be drawn
    for heading, table in layout.published_tables(cells):
        yield f"### {heading}\n\n{table.centred()}"
    yield from drawn


def page_layouts() -> dict[str, Page]:
    """What ``--like`` can be: each yields parts of the page that it makes of the rows of a study."""
    return {name: _like(name) for name in published_names()} | {name: _ladder(name) for name in LADDERS}


def page_layout_of(name: str) -> Page:
    """One of :func:`page_layouts`. Raises UsageError for an unknown name."""
    known = page_layouts()
    if name not in known:
        raise UsageError(f"--like {name}: there is no such page.{did_you_mean(name, known)} Pages: {', '.join(known)}.")
    return known[name]


def _like(name: str) -> Page:
    def page(results: Sequence[Result], folder: Path | None, gpu: str | None, compose: Compose) -> Iterator[str]:
        theirs = _page_gpu(name, gpu)
        found = likeness_to_published(results, name, compose(name), theirs)
        drawn = _charts(found.drawn, folder, _our_gpu(name, gpu, found))
        for heading, table in layout.published_tables([*found.ours, *found.beside], found.columns):
            yield f"### {heading}\n\n{table.centred()}"
        says = ["Iterations per second, each over the whole batch; of a cascade, one figure per stage."]
        if found.beside:
            whose = "" if theirs is None else f" of the {theirs}"
            says.append(
                f"'published' is the page's figure{whose} of the newest torch that it has; above 1x ours is faster."
            )
        yield "\n".join(f"- {line}" for line in (*says, *found.notes)) + "\n"
        yield from drawn

    return page


def _page_gpu(name: str, gpu: str | None) -> str | None:
    """The page's GPU of that name, as the page writes it; None where it has none."""
    found = {published_gpu_name(figure.gpu): figure.gpu for figure in published_figures(name)}
    return None if gpu is None else found.get(published_gpu_name(gpu))


def _our_gpu(name: str, gpu: str | None, found: Likeness) -> str | None:
    """``gpu`` where it names one of the study's; None where it is meant for the page's figures alone.

    Raises UsageError where it is neither, or several of the study's.
    """
    ours = list(dict.fromkeys(entry.gpu for entry in found.ours))
    mine = [] if gpu is None else published_gpus_called(gpu, ours)
    if gpu is None or len(mine) == 1:
        return gpu
    if _page_gpu(name, gpu) is not None:
        return None
    if mine:
        raise UsageError(
            f"--gpu {gpu} is several of the study's GPUs: {', '.join(mine)}. A longer part of a name tells which one."
        )
    theirs = dict.fromkeys(figure.gpu for figure in published_figures(name))
    raise UsageError(
        f"--gpu {gpu} is not one of the study's GPUs: {', '.join(ours)}; and none of the page's: {', '.join(theirs)}."
    )


def _ladder(name: str) -> Page:
    def page(results: Sequence[Result], folder: Path | None, gpu: str | None, compose: Compose) -> Iterator[str]:
        if folder is not None or gpu is not None:
            raise UsageError(
                f"--like {name} is one table: --charts and --gpu go with --like {' or '.join(published_names())}."
            )
        yield ladder_table(results, name).markdown()

    return page


def _charts(cells: Sequence[Entry], folder: Path | None, gpu: str | None) -> list[str]:
    """The charts as text in a fence, or where each was drawn when there is a ``folder`` for them."""
    found = charts_of_published(cells, gpu)
    if folder is None:
        return ["```text\n" + "\n".join(map(chart_to_text, found)) + "```\n"] if found else []
    if not found:
        raise UsageError(f"--charts {folder}: there is no figure to draw.")
    folder = user_path(folder, "--charts")
    with temporary_folder("charts") as drawn:  # nothing is made in the user's place before all of them can be drawn
        for chart in found:
            chart_to_png(chart, drawn / f"{chart.name}.png")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--charts {folder}: the folder cannot be made: {error.strerror or error}.") from error
        try:
            for chart in found:
                shutil.copyfile(drawn / f"{chart.name}.png", folder / f"{chart.name}.png")
        except OSError as error:
            raise UsageError(f"--charts {folder}: it cannot be written to: {error.strerror or error}.") from error
    return [f"{chart.title}: {folder / f'{chart.name}.png'}\n" for chart in found]
