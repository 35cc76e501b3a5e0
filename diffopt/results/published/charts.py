"""The two charts of a benchmark in the published layout, as text and as PNG.

``speedups``: what compiling gains on each GPU. ``pipelines``: every pipeline on one GPU. Both have one panel per batch
size, since speeds of different batches need different axes.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffopt.errors import Refusal, UsageError
from diffopt.results.published.figures import published_gpu_name
from diffopt.results.published.layout import NOTHING, PLAIN, REFUSED, Entry, published_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIRST = "SD - txt2img"  # the pipeline of which the GPUs are compared
WIDTH = 40  # characters of the longest bar in text
GROUP_WIDTH = 0.84  # of the distance between two groups of bars
INCHES = 14  # least width of a picture
PANEL_INCHES = 3.6  # height of a panel whose names take one line
LETTER, LINE = 0.085, 0.17  # width of a letter and height of a line, in inches, of the names below bars
LEGEND_LETTER, SWATCH = 0.094, 0.8  # the same of the legend, and what stands around its names
NAME_WIDTH, WORD_WIDTH = 18, 26  # characters of a line of a name; a longer word has its own line, up to the second
COLOURS = ("#9ecae1", "#3182bd", "#fdae6b", "#e6550d", "#a1d99b", "#31a354", "#bcbddc", "#756bb1")


@dataclass(frozen=True)
class Bar:
    """One bar; ``value`` None where there is no figure, for the reason that ``text`` then is."""

    group: str
    series: str
    value: float | None
    text: str


@dataclass(frozen=True)
class Panel:
    title: str
    bars: tuple[Bar, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(bar.group for bar in self.bars))


@dataclass(frozen=True)
class Chart:
    """``name`` is its file's, ``unit`` stands at the axis of the values; ``baseline`` is a line across."""

    name: str
    title: str
    unit: str
    panels: tuple[Panel, ...]
    baseline: float | None = None

    @property
    def series(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(bar.series for panel in self.panels for bar in panel.bars))


def charts_of_published(cells: Sequence[Entry], gpu: str | None = None) -> list[Chart]:
    """Both charts; one without any figure is left out.

    Args:
        cells: of the tables, in their order.
        gpu: whose pipelines are shown: its name in the tables or a part of it, in any case and without blanks if one
            likes; None: the first one.

    Raises:
        UsageError: none or several of the GPUs are called so.
    """
    gpus = list(dict.fromkeys(cell.gpu for cell in cells))
    chosen = gpus[:1] if gpu is None else published_gpus_called(gpu, gpus)
    if len(chosen) != 1:
        raise UsageError(f"--gpu {gpu} is {'several' if chosen else 'none'} of the tables' GPUs: {', '.join(gpus)}.")
    both = speedup_chart(cells), pipelines_chart(cells, chosen[0])
    return [chart for chart in both if any(bar.value is not None for panel in chart.panels for bar in panel.bars)]


def published_gpus_called(gpu: str, gpus: Sequence[str]) -> list[str]:
    """Those of ``gpus`` whose name ``gpu`` is, else those of whose name it is a part."""
    exact = [name for name in gpus if published_gpu_name(name) == published_gpu_name(gpu)]
    return exact or [name for name in gpus if published_gpu_name(gpu) in published_gpu_name(name)]


def speedup_chart(cells: Sequence[Entry]) -> Chart:
    """Iterations per second compiled over not compiled, of Stable Diffusion's text to image on each GPU."""
    before = {_compared(cell): cell.speeds[0] for cell in cells if cell.mode == PLAIN and cell.speeds}
    panels = []
    for batch_size in sorted({cell.batch_size for cell in cells}):
        bars = []
        for cell in cells:
            if cell.batch_size != batch_size or cell.mode == PLAIN or not cell.pipeline.startswith(FIRST):
                continue
            base = before.get(_compared(cell))
            value = cell.speeds[0] / base if cell.speeds and base else None
            text = _without_figure(cell.text) if value is None else f"{value:.2f}x"
            bars.append(Bar(cell.gpu + cell.pipeline.removeprefix(FIRST), f"{cell.torch}, {cell.mode}", value, text))
        panels.append(Panel(f"batch size {batch_size}", tuple(bars)))
    return Chart("speedup", f"{FIRST}: speed-up by torch.compile", "speed-up over no compile", _some(panels), 1.0)


def _compared(cell: Entry) -> tuple[object, ...]:
    return cell.gpu, cell.batch_size, cell.pipeline, cell.torch


def pipelines_chart(cells: Sequence[Entry], gpu: str) -> Chart:
    """Iterations per second of all pipelines on one GPU; a cascade has a group of bars for each stage."""
    mine = [cell for cell in cells if cell.gpu == gpu]
    panels = []
    for batch_size in sorted({cell.batch_size for cell in mine}):
        here = [cell for cell in mine if cell.batch_size == batch_size]
        stages = {cell.pipeline: 0 for cell in here}
        for cell in here:
            stages[cell.pipeline] = max(stages[cell.pipeline], len(cell.speeds))
        bars = [bar for cell in here for bar in _stage_bars(cell, stages[cell.pipeline])]
        panels.append(Panel(f"batch size {batch_size}", tuple(bars)))
    return Chart("pipelines", f"All pipelines on {gpu}", "iterations per second", _some(panels))


def _stage_bars(cell: Entry, stages: int) -> list[Bar]:
    series = f"{cell.torch}, {cell.mode}"
    names = [cell.pipeline] if stages <= 1 else [f"{cell.pipeline}, stage {index + 1}" for index in range(stages)]
    if not cell.speeds:
        return [Bar(name, series, None, _without_figure(cell.text)) for name in names]
    return [Bar(name, series, speed, published_number(speed)) for name, speed in zip(names, cell.speeds, strict=False)]


def _without_figure(text: str) -> str:
    return {NOTHING: "", REFUSED: "cannot run"}.get(text, text)


def _some(panels: Sequence[Panel]) -> tuple[Panel, ...]:
    return tuple(panel for panel in panels if panel.bars)


def chart_to_text(chart: Chart) -> str:
    """The chart in lines of text: a bar, its figure or why there is none; what was not measured is left out."""
    lines = [f"{chart.title} ({chart.unit})"]
    width = max(len(name) for name in chart.series)
    for panel in chart.panels:
        longest = max((bar.value for bar in panel.bars if bar.value is not None), default=1.0)
        lines += ["", panel.title]
        for group in panel.groups:
            lines.append(f"  {group}")
            for bar in panel.bars:
                if bar.group == group and bar.text:
                    block = "█" * max(1, round(WIDTH * bar.value / longest)) + " " if bar.value is not None else ""
                    lines.append(f"    {bar.series:{width}}  {block}{bar.text}")
    return "\n".join(lines) + "\n"


def chart_to_png(chart: Chart, path: Path) -> None:
    """Draw the chart. Raises Refusal without matplotlib, UsageError when the file cannot be written."""
    figure = chart_to_figure(chart)
    try:
        figure.savefig(path)
    except OSError as error:
        raise UsageError(f"--charts: {path} cannot be written: {error.strerror or error}.") from error


def chart_to_figure(chart: Chart) -> Figure:
    """The chart as matplotlib draws it, as wide as the names below the bars need. Raises Refusal without matplotlib."""
    try:
        with chdir(os.sep):  # a matplotlibrc of the working directory could start a program: LaTeX
            from matplotlib.figure import Figure
            from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise Refusal(
            "--charts draws with matplotlib, which is not installed: pip install 'diffopt-toolkit[charts]' gets it. "
            "Without --charts the same charts are printed as text."
        ) from error
    width = max(INCHES, *(_wide(panel) for panel in chart.panels))
    columns = _legend_columns(chart.series, width)
    heights = [PANEL_INCHES + LINE * (_lines(panel) - 1) for panel in chart.panels]
    height = 1.6 + sum(heights) + LINE * max(0, len(chart.series) / columns - 2)
    figure = Figure(figsize=(width, height), dpi=100, layout=ConstrainedLayoutEngine(h_pad=0.12))
    figure.suptitle(chart.title, fontsize=16, fontweight="bold")
    axes = figure.subplots(len(chart.panels), squeeze=False, height_ratios=heights)[:, 0]
    for panel, ax in zip(chart.panels, axes, strict=True):
        _draw(chart, panel, ax, width)
    handles = [_swatch(index) for index in range(len(chart.series))]
    figure.legend(handles, chart.series, loc="outside lower center", ncols=columns, fontsize=11)
    return figure


def _folded(group: str) -> list[str]:
    """The name of a group in lines; only a word that is very long is cut."""
    lines = textwrap.wrap(group, NAME_WIDTH, break_long_words=False, break_on_hyphens=False)
    return [piece for line in lines for piece in textwrap.wrap(line, WORD_WIDTH, break_on_hyphens=False)]


def _wide(panel: Panel) -> float:
    """Inches of a picture in which no name of the panel meets the next one: all groups are as wide as the widest."""
    longest = max(len(line) for group in panel.groups for line in _folded(group))
    return 1 + len(panel.groups) * (longest + 2) * LETTER


def _lines(panel: Panel) -> int:
    return max(len(_folded(group)) for group in panel.groups)


def _legend_columns(series: Sequence[str], width: float) -> int:
    """How many fit beside each other, at most four: each column is about as wide as the longest name."""
    longest = max(map(len, series)) * LEGEND_LETTER + SWATCH
    return max(1, min(4, len(series), int(width / longest)))


def _swatch(index: int) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=COLOURS[index % len(COLOURS)])


def _draw(chart: Chart, panel: Panel, ax: Axes, inches: float) -> None:
    """One panel: bars side by side in each group, each with its figure or its reason above.

    Figures stand upright where one of them is wider than its bar; reasons always do.
    """
    width = GROUP_WIDTH / len(chart.series)
    longest = max((len(bar.text) for bar in panel.bars if bar.value is not None), default=0)
    narrow = longest * LETTER > width * inches / (len(panel.groups) + 0.5)
    for bar in panel.bars:
        index = chart.series.index(bar.series)
        middle = panel.groups.index(bar.group) - GROUP_WIDTH / 2 + (index + 0.5) * width
        ax.bar(middle, bar.value or 0, width * 0.94, color=COLOURS[index % len(COLOURS)])
        above: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "va": "bottom"}
        upright = 90 if narrow or bar.value is None else 0
        ax.annotate(bar.text, (middle, bar.value or 0), fontsize=9, rotation=upright, **above)
    if chart.baseline is not None:
        ax.axhline(chart.baseline, color="gray", linewidth=1, linestyle="--")
    ax.set_title(panel.title, loc="left", fontsize=12)
    ax.set_ylabel(chart.unit, fontsize=11)
    ax.set_xticks(range(len(panel.groups)), ["\n".join(_folded(group)) for group in panel.groups], fontsize=10)
    ax.set_xlim(-0.6, len(panel.groups) - 0.4)
    ax.margins(y=0.22 if narrow else 0.12)
    ax.spines[["top", "right"]].set_visible(False)
