"""The published matrix as it ships: its data, its tables to the letter, its charts."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from support.places import REPO

from diffopt.config.resolve import compose_requests
from diffopt.errors import Refusal, UsageError
from diffopt.recipe.plan import make_plan
from diffopt.results.published.charts import Chart, chart_to_figure, chart_to_png, chart_to_text, charts_of_published
from diffopt.results.published.figures import published_figures, published_names
from diffopt.results.published.layout import Entry, published_entries, published_tables

Cli = Callable[..., tuple[int, str, str]]
PAGE = Path(__file__).with_name("published_tables.md")  # the tables of the page, each cell without outer blanks


def split(page: str) -> dict[str, list[list[str]]]:
    """The cells of each table of a Markdown page, by heading; headers first."""
    found: dict[str, list[list[str]]] = {}
    for line in page.splitlines():
        if line.startswith("### "):
            rows = found.setdefault(line[4:], [])
        elif line.startswith("| "):
            rows.append(line[2:-2].split(" | "))
    return found


def test_the_tables_are_those_of_the_page_cell_by_cell() -> None:
    ours = {
        h: [[f"**{c}**" for c in t.headers], *map(list, t.rows)]
        for h, t in published_tables(published_entries(published_figures("pytorch2")))
    }
    theirs = split(PAGE.read_text(encoding="utf-8"))
    assert len(theirs) == 15
    assert list(ours) == list(theirs)
    for heading, rows in theirs.items():
        assert ours[heading] == rows, heading


def test_the_command_prints_the_page_and_then_the_charts(cli: Cli) -> None:
    code, out, err = cli("report", "--published", "pytorch2")
    assert (code, err) == (0, "")
    page, _, rest = out.partition("\n```text\n")
    assert page == PAGE.read_text(encoding="utf-8")
    assert rest.endswith("```\n")
    assert "OOM after 2nd iteration" in rest


def test_each_text_says_what_its_figure_is() -> None:
    """2.34s is seconds per iteration; the page's slips of the pen stay in the text alone."""
    for figure in published_figures("pytorch2"):
        speed = figure.iterations_per_second
        assert (figure.status == "ok") == (speed is not None)
        if speed is None:
            assert figure.text == "❌" or figure.text == "-" or figure.text.startswith("OOM")
            continue
        written = figure.text.replace(",", "")
        expected = 1 / float(written[:-1]) if written.endswith("s") else float(written)
        assert speed == pytest.approx(expected, rel=1e-3), figure


def test_hardware_and_models_are_options() -> None:
    conf = REPO / "conf"
    for figure in published_figures("pytorch2"):
        assert (conf / "hardware" / f"{figure.hardware}.yaml").is_file()
        assert (conf / "model" / f"{figure.option}.yaml").is_file()


def test_names_and_unknown_names(cli: Cli) -> None:
    assert published_names() == ("pytorch2",)
    code, out, err = cli("report", "--published", "pytorch3")
    assert (code, out) == (2, "")
    assert "Did you mean pytorch2?" in err


def drawn(gpu: str | None = None) -> list[Chart]:
    return charts_of_published(published_entries(published_figures("pytorch2")), gpu)


def test_the_speed_up_is_compiled_over_not_compiled_of_the_same_torch() -> None:
    speedup, _ = drawn()
    first, _, last = speedup.panels
    found = {(bar.group, bar.series): bar.value for bar in first.bars}
    assert len(found) == 5 * 2
    assert found["A100", "torch 2.0, compile"] == pytest.approx(44.03 / 21.66)
    assert found["RTX 4090", "torch nightly, compile"] == pytest.approx(49.81 / 41.89)
    missing = [bar for bar in last.bars if bar.value is None]
    assert [(bar.group, bar.text) for bar in missing] == [("T4", "OOM after 2nd iteration")]


def test_the_second_chart_has_every_pipeline_of_the_gpu_that_is_asked_for() -> None:
    _, chart = drawn()
    assert chart.title == "All pipelines on A100"
    stages = [f"IF, stage {number}" for number in (1, 2, 3)]
    tasks = [f"SD - {task}" for task in ("txt2img", "img2img", "inpaint", "controlnet")]
    assert list(dict.fromkeys(bar.group for bar in chart.panels[0].bars)) == [*tasks, *stages, "SDXL - txt2img"]
    by_name = {(bar.group, bar.series): bar for bar in chart.panels[0].bars}
    assert by_name["IF, stage 3", "torch nightly, compile"].value == 111.66
    assert by_name["IF, stage 2", "torch 2.0, compile"].text == "cannot run"
    assert drawn("rtx3090")[1].title == drawn("3090")[1].title == "All pipelines on RTX 3090"
    with pytest.raises(UsageError, match="several of the tables' GPUs: A100, V100"):
        drawn("100")
    with pytest.raises(UsageError, match="none of the tables' GPUs"):
        drawn("h100")


def test_bars_of_text_are_as_long_as_their_figures() -> None:
    cells = [
        Entry("A100", 1, "SD - txt2img", "torch 2", "no compile", "10", (10.0,)),
        Entry("A100", 1, "SD - txt2img", "torch 2", "compile", "20", (20.0,)),
        Entry("A100", 1, "SD - inpaint", "torch 2", "compile", "OOM at warmup", ()),
    ]
    speedup, pipelines = charts_of_published(cells)
    assert "torch 2, compile  " + "█" * 40 + " 2.00x" in chart_to_text(speedup)
    lines = chart_to_text(pipelines).splitlines()
    assert sorted(line.count("█") for line in lines if "█" in line) == [20, 40]
    assert lines[-1].endswith("torch 2, compile     OOM at warmup")


def test_a_chart_without_any_figure_is_left_out() -> None:
    only = Entry("A100", 1, "SD - txt2img", "torch 2", "no compile", "12.00", (12.0,))
    assert [chart.name for chart in charts_of_published([only])] == ["pipelines"]


def test_the_charts_as_pictures(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("report", "--published", "pytorch2", "--charts", "drawn", "--gpu", "t4")
    assert code == 0
    assert "```" not in out
    assert "All pipelines on T4: drawn/pipelines.png" in out
    for name in ("speedup", "pipelines"):
        with Image.open(tmp_path / "drawn" / f"{name}.png") as picture:
            assert picture.size == (1400, 1240)
            assert len(picture.convert("RGB").getcolors(2**20) or ()) > 100


def test_without_matplotlib_the_command_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Refusal, match=r"pip install 'diffopt-toolkit\[charts\]'"):
        chart_to_png(drawn()[0], tmp_path / "chart.png")


def test_without_matplotlib_nothing_is_printed_or_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: Cli
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = cli("report", "--published", "pytorch2", "--charts", "drawn")
    assert (code, out) == (1, "")
    assert "--charts draws with matplotlib, which is not installed" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--published", "pytorch2", "some"), "--published takes no study"),
        (("some", "--like", "pytorch2", "--csv"), "--csv and --like are different reports"),
        (("some", "--charts", "."), "--charts: the charts are those of --like and --published"),
        (("some", "--like", "pytroch2"), "Did you mean pytorch2?"),
        (("--published", "pytorch2", "--charts", "file"), "the folder cannot be made"),
        (("--published", "pytorch2", "--gpu", "h100"), "--gpu h100 is none of the tables' GPUs"),
    ],
)
def test_wrong_usage(cli: Cli, tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    (tmp_path / "file").write_text("")
    code, out, err = cli("report", *words)
    assert (code, out) == (2, "")
    assert says in err


def test_what_would_break_a_table_is_escaped() -> None:
    ((_, table),) = published_tables([Entry("A|B", 4, "SD | x", "torch 2", "compile", "1.00", (1.0,))])
    assert table.centred().splitlines()[-1] == r"| SD \| x | 1.00 |"


def many(names: Sequence[str], torches: Sequence[str] = ("torch 2.13.0",)) -> Chart:
    modes = ("no compile", "compile=reduce_overhead", "compile=max_autotune")
    cells = [
        Entry("A100", 1, name, torch, mode, "1.00", (1.0,)) for name in names for torch in torches for mode in modes
    ]
    return charts_of_published([*cells, Entry("A100", 4, names[0], torches[0], modes[0], "2.00", (2.0,))])[-1]


SETTINGS = "precision=bf16 fuse=qkv quant=int8_dynamic_vae attention=sdpa layout=channels_last scheduler=euler"
NAMES = [*(f"SD - task {number}" for number in range(12)), *(f"SDXL - txt2img, {SETTINGS} {n}" for n in range(12))]


@pytest.mark.parametrize("names", [NAMES, NAMES[:3], NAMES[-3:], [f"SD, model.revision={n:040}" for n in range(9)]])
def test_names_below_the_bars_do_not_meet(names: Sequence[str]) -> None:
    pytest.importorskip("matplotlib")
    figure = chart_to_figure(many(names))
    figure.draw_without_rendering()
    for ax in figure.axes:
        boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)
    assert (figure.bbox.width == pytest.approx(1400)) == (len(names) == 3)


@pytest.mark.parametrize("torches", [1, 2, 3])
def test_the_whole_legend_is_in_the_picture(torches: int) -> None:
    pytest.importorskip("matplotlib")
    figure = chart_to_figure(many(NAMES[:6], [f"torch 2.1{n}.0a0+git1234567 (container{n})" for n in range(torches)]))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert len(legend.get_texts()) == 3 * torches
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    panels = [panel for ax in figure.axes if (panel := ax.get_tightbbox()) is not None]
    assert 0 <= box.y0 < box.y1 <= min(panel.y0 for panel in panels)


def section(page: str, title: str) -> str:
    return page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_documented_sweeps_of_the_page_are_planned_in_full() -> None:
    """The page's cells once, by both protocols, and at a small size on the CPU, where none of them is refused."""
    text = section((REPO / "docs/sweep.md").read_text(encoding="utf-8"), "The published benchmarks")
    lines = text.replace("\\\n", " ").splitlines()
    asked = [shlex.split(line, comments=True)[3:] for line in lines if line.startswith("diffopt run -m sweep=pytorch2")]
    found = {}
    for words in asked:
        study = next(word for word in words if word.startswith("study="))
        hardware = "cpu" if "precision=fp32" in words else "a100"
        found[study] = compose_requests([*words, f"hardware={hardware}"], multirun=True)
        assert [make_plan(r.cell).problems for r in found[study]] == [()] * len(found[study])
    assert {study: len(cells) for study, cells in found.items()} == {
        "study=page": 36,
        "study=both": 72,
        "study=small": 36,
    }
    assert {r.cell.recipe.model.weights for r in found["study=small"]} == {"tiny"}


def test_every_committed_result_is_named_in_the_page_of_results() -> None:
    """A study by its folder, anything else by its path."""
    listed = subprocess.run(["git", "ls-files", "docs/results"], cwd=REPO, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("no git here")
    folder = REPO / "docs/results"
    page = (folder / "README.md").read_text(encoding="utf-8")
    paths = [Path(line).relative_to("docs/results") for line in listed.stdout.splitlines()]
    names = {path.parts[0] if (folder / path.parts[0] / "cells").is_dir() else path.as_posix() for path in paths}
    assert [name for name in sorted(names - {"README.md", ".gitignore"}) if f"`{name}`" not in page] == []
