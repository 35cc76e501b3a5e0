"""What ``report --published`` and ``report --like`` print and draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from diffopt.charts import charts, to_png, to_text
from diffopt.errors import UsageError
from diffopt.ladder import LADDERS, ladder
from diffopt.paths import user_path
from diffopt.published import layout, names, published
from diffopt.published.layout import Entry
from diffopt.published.like import likeness
from diffopt.report import to_markdown
from diffopt.result import Result
from diffopt.suggest import did_you_mean

Page = Callable[[Sequence[Result], Path | None, str | None], Iterator[str]]


def published_page(name: str, folder: Path | None, gpu: str | None) -> Iterator[str]:
    """The tables of a published benchmark, then its charts: :func:`_charts` has the last two arguments."""
    cells = layout.entries(published(name))
    for heading, table in layout.tables(cells):
        yield layout.to_markdown(heading, table)
    yield from _charts(cells, folder, gpu)


def layouts() -> dict[str, Page]:
    """What ``--like`` can be: each yields parts of the page that it makes of the rows of a study."""
    return {name: _like(name) for name in names()} | {name: _ladder(name) for name in LADDERS}


def layout_of(name: str) -> Page:
    """One of :func:`layouts`. Raises UsageError for an unknown name."""
    known = layouts()
    if name not in known:
        raise UsageError(f"--like {name}: there is no such page.{did_you_mean(name, known)} Pages: {', '.join(known)}.")
    return known[name]


def _like(name: str) -> Page:
    def page(results: Sequence[Result], folder: Path | None, gpu: str | None) -> Iterator[str]:
        found = likeness(results, published(name))
        for heading, table in layout.tables([*found.ours, *found.beside], found.columns):
            yield layout.to_markdown(heading, table)
        says = ["Iterations per second, each over the whole batch; of a cascade, one figure per stage."]
        if found.beside:
            says.append("'published' is the page's figure of the newest torch that it has; above 1x ours is faster.")
        yield "\n".join(f"- {line}" for line in (*says, *found.notes)) + "\n"
        yield from _charts(found.ours, folder, gpu)

    return page


def _ladder(name: str) -> Page:
    def page(results: Sequence[Result], folder: Path | None, gpu: str | None) -> Iterator[str]:
        if folder is not None or gpu is not None:
            raise UsageError(f"--like {name} is one table: --charts and --gpu go with --like {' or '.join(names())}.")
        yield to_markdown(ladder(results, name))

    return page


def _charts(cells: Sequence[Entry], folder: Path | None, gpu: str | None) -> Iterator[str]:
    """The charts as text in a fence, or where each was drawn when there is a ``folder`` for them."""
    found = charts(cells, gpu)
    if folder is None:
        if found:
            yield "```text\n" + "\n".join(map(to_text, found)) + "```\n"
        return
    if not found:
        raise UsageError(f"--charts {folder}: there is no figure to draw.")
    folder = user_path(folder, "--charts")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--charts {folder}: the folder cannot be made: {error.strerror or error}.") from error
    for chart in found:
        to_png(chart, folder / f"{chart.name}.png")
        yield f"{chart.title}: {folder / f'{chart.name}.png'}\n"
