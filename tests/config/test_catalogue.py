"""`diffopt ls model`: what each model needs, whether it fits here, in columns that fit on a screen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from diffopt.config import Composer
from diffopt.config.catalogue import Row, describe_model_option, list_options
from diffopt.config.resolve import compose_requests
from diffopt.machine import nvml
from diffopt.machine.nvml import Gpu
from diffopt.recipe.rules.estimate import GIB
from diffopt.results.table import Table
from diffopt.schema.model import Model, Parameters

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A T4 is all that NVML tells of."""
    found = Gpu(0, "GPU-0", "Tesla T4", 15 * GIB, (7, 5), "580.1")
    monkeypatch.setattr(nvml, "detect_gpus", lambda: (found,))


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


def rows(composer: Composer) -> dict[str, Row]:
    return {row.option: row for row in list_options(composer, "model")}


@pytest.mark.usefixtures("gpu")
def test_needs_and_fit_on_a_gpu(composer: Composer) -> None:
    found = rows(composer)
    assert found["flux_dev"].needs == (
        "11.9 B + 4.9 B text + 0.08 B VAE; 33.7 GB in bf16; flux-1-dev-non-commercial-license, gated, unpinned"
    )
    assert found["flux_dev"].here == "no, 32.9 of 15.0 GiB"
    assert found["sd15"].needs == ("0.86 B + 0.12 B text + 0.08 B VAE; 2.1 GB in fp16; creativeml-openrail-m, unpinned")
    assert found["sd15"].here.startswith("yes, 2.")
    assert found["tiny"].here == "yes, <0.1 of 15.0 GiB"
    assert "unpinned" not in found["tiny"].needs
    assert not [row for row in found.values() if "broken" in row.here]


def test_a_recipe_says_whether_its_options_work_on_this_machine(
    composer: Composer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml, "detect_gpus", lambda: ())
    found = {row.option: row.here for row in list_options(composer, "recipe")}
    assert found["baseline"] == found["pytorch2"] == "yes"
    assert found["flux"].startswith("no: quant=fp8_dynamic: works on cuda only; attention=flash3: works on cuda only")


def test_fit_on_the_cpu_counts_its_own_memory(composer: Composer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "detect_gpus", lambda: ())
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 64 * GIB // 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert rows(composer)["flux_dev"].here == "yes, 32.9 of 64.0 GiB"


@pytest.mark.usefixtures("gpu")
def test_options_without_a_place_are_not_looked_up(composer: Composer) -> None:
    found = rows(composer)
    for name in ("local", "hub"):
        assert (found[name].needs, found[name].here) == ("what its first line names", "not known")


def test_a_cascade_is_counted_whole() -> None:
    (request,) = compose_requests(["model=deepfloyd_if", "hardware=cpu"])
    model = request.cell.recipe.model
    assert len(model.stages) == 3
    assert describe_model_option(model).startswith("1.3 B + 0.34 B text + 0.06 B VAE; 3.4 GB in fp16; ")


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ((20_430_401_088, 8_292_166_656, 126_892_531), "20.4 B + 8.3 B text + 0.13 B VAE; 57.7 GB in fp16"),
        ((1_200_000, None, 60_000), "1.2 M + 0.1 M VAE; 2.5 MB in fp16"),
        ((None, 10**9, 10**9), "creativeml-openrail-m"),
    ],
)
def test_sizes_in_words(sizes: tuple[int | None, int | None, int | None], says: str) -> None:
    (request,) = compose_requests(["model=sd15", "hardware=cpu"])
    denoiser, text, vae = sizes
    parameters = Parameters(denoiser=denoiser, text_encoders=text, vae=vae)
    model: Model = request.cell.recipe.model.model_copy(update={"parameters": parameters})
    assert describe_model_option(model).startswith(says)


def test_a_circle_of_siblings_is_one_broken_row(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "here.yaml").write_text("# one of two\ndefaults: [there, _self_]\n")
    (folder / "there.yaml").write_text("# two of two\ndefaults: [here, _self_]\n")
    found = rows(Composer([tmp_path]))
    assert "circle" in found["here"].here
    assert "yes" in found["sd15"].here


@pytest.mark.parametrize(
    ("yaml", "here"),
    [
        ("python: /etc/passwd", "runtime=own: runtime.python=/etc/passwd is no program here"),
        ("python: gone/bin/python", "runtime=own: runtime.python=gone/bin/python is no program here"),
        ("name: current\npython: /x", "runtime.python=/x: runtime=current is the Python that runs diffopt"),
        ("name: other", "runtime=other names no interpreter"),
        ("python: 7", "broken: runtime.python=7"),
        (f"python: {'x' * 5000}", "broken: runtime.python='xxx"),
        ("python: /x\npythn: /x", "broken: 'runtime.pythn' is not a key here."),
        (f"python: {sys.executable}", "yes, a program is there"),
    ],
)
def test_a_runtime_works_here_where_a_program_is(tmp_path: Path, yaml: str, here: str) -> None:
    folder = tmp_path / "runtime"
    folder.mkdir()
    (folder / "own.yaml").write_text(f"# of one's own\ndefaults: [python, _self_]\n{yaml}\n")
    found = {row.option: row for row in list_options(Composer([tmp_path]), "runtime")}
    assert found["own"].here.startswith(here)
    assert found["current"].here == "yes"
    assert found["python"].here == "runtime=python names no interpreter: add runtime.python=/path/to/venv/bin/python"


def test_runtimes_are_listed_without_torch_and_nothing_is_started(tmp_path: Path) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "own.yaml").write_text(f"# own\ndefaults: [python, _self_]\npython: {sys.executable}\n")
    code = (
        "import subprocess, sys; from pathlib import Path; from diffopt.config import catalogue;"
        "from diffopt.config import Composer; subprocess.Popen = None;"
        f"print(*(row.here[:3] for row in catalogue.list_options(Composer([Path({str(tmp_path)!r})]), 'runtime')));"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["yes", "yes", "run"]), done.stderr


def test_lines_fit_on_a_screen(cli: Cli) -> None:
    code, out, err = cli("ls", "model")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0].split("  ")[0] == "model"
    (first,) = [line for line in lines if line.startswith("flux_dev ")]
    assert "11.9 B + 4.9 B text + 0.08 B VAE;" in first
    assert "of" in first.split("  ")[-1]


def test_wrapped_cells_stay_in_their_columns() -> None:
    table = Table(("name", "what it is", "needs", "here"), (("a", "one two three four", "five six", "yes"),))
    assert table.wrapped(width=30).rows == (
        ("a", "one two", "five six", "yes"),
        ("", "three", "", ""),
        ("", "four", "", ""),
    )
