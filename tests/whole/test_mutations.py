"""Recipe files, rows and model configs with something odd in them: an answer or one paragraph, nothing touched."""

from __future__ import annotations

import copy
import functools
import io
import json
import operator
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.rows import a_cell, a_result

from diffopt.cli.main import main
from diffopt.models.resolve import PACKAGED
from diffopt.results.result import Latency, Metrics
from diffopt.results.study import Study

FEW, MANY = 40, 1700  # examples of each kind, in the fast and in the slow suite
ODD: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        10**30,
        1.5,
        1e308,
        "",
        "x",
        "../../x",
        "/etc/passwd",
        "~/.netrc",
        "\x1b[31m",
        "\ud800",
        "a\nb",
    ),
    *(
        [],
        [None],
        [[]],
        {},
        {"kind": "none"},
        {"_target_": "os.system"},
        "${oc.env:HOME}",
        "x" * 10_000,
        "1e999",
        "nan",
    ),
]


def paths(data: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in nested data."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield (*here, key)
        yield from paths(value, (*here, key))


def mutated(data: Any, seed: int) -> Any:
    """The data with one to three values replaced, left out, doubled, or moved to another's place."""
    changed, chance = copy.deepcopy(data), random.Random(seed)
    for _ in range(chance.randint(1, 3)):
        places = list(paths(changed))
        if not places:
            break
        *parents, key = chance.choice(places)
        node = functools.reduce(operator.getitem, parents, changed)
        what = chance.choice(["odd", "odd", "gone", "more", "other"])
        if what == "gone":
            del node[key]
        elif what == "more" and isinstance(node, dict):
            node[chance.choice(["extra", "kind", "_target_", "1", ""])] = copy.deepcopy(chance.choice(ODD))
        elif what == "other":
            node[key] = copy.deepcopy(functools.reduce(operator.getitem, chance.choice(places), changed))
        else:
            node[key] = copy.deepcopy(chance.choice(ODD))
    return changed


def answer(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(list(words))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 2
    return code, out.getvalue(), err.getvalue()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def check_answer(code: int, err: str) -> None:
    assert code in (0, 1, 2)
    assert "Traceback" not in err
    assert code == 0 or err.startswith("diffopt: "), err


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a recipe file, a model and a study."""
    folder = tmp_path_factory.mktemp("home")
    with chdir(folder):
        os.environ["XDG_CACHE_HOME"], before = str(folder / "cache"), os.environ.get("XDG_CACHE_HOME")
        yield folder
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


def examples(count: int) -> Any:
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=count, deadline=None, suppress_health_check=quiet, derandomize=True, database=None)


SEEDS = st.integers(0, 2**32)
COUNTS = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
RECIPE = yaml.safe_load(answer("show", "compile=regional", "quant=int8_dynamic", "hardware=cpu")[1])
ROW = a_result(metrics=Metrics(latency_s=Latency(samples=(1.0,) * 3, median=1.0, q1=1.0, q3=1.0)))
CONFIGS = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)


@COUNTS
def test_recipe_files(home: Path, count: int) -> None:
    @examples(count)
    @given(SEEDS)
    def each(seed: int) -> None:
        data = mutated(RECIPE, seed)
        (home / "f.yaml").write_text(yaml.safe_dump(data), encoding="utf-8", errors="surrogatepass")
        before = files(home)
        code, _, err = answer("plan", "--recipe", "f.yaml")
        check_answer(code, err)
        assert files(home) == before

    each()


@COUNTS
def test_rows(home: Path, count: int) -> None:
    study = Study.create("rows")
    study.keep(ROW)
    study.keep(ROW.model_copy(update={"cell_id": "0" * 12, "cell": {**ROW.cell, "choices": {}}}))
    (spoiled,) = study.path.glob(f"cells/{a_cell().id}/*/result.json")
    data = json.loads(spoiled.read_text())

    @examples(count)
    @given(SEEDS, st.sampled_from([["report", "rows"], ["report", "rows", "--csv"], ["compare", "rows", "rows"]]))
    def each(seed: int, words: list[str]) -> None:
        spoiled.write_text(json.dumps(mutated(data, seed)))
        before = files(home)
        code, _, err = answer(*words)
        check_answer(code, err)
        assert files(home) == before

    each()


@COUNTS
def test_model_configs(home: Path, count: int) -> None:
    folder = home / "mine"
    shutil.copytree(PACKAGED / "tiny", folder, dirs_exist_ok=True)
    kept = {name: json.loads((folder / name).read_text()) for name in CONFIGS}

    @examples(count)
    @given(SEEDS, st.sampled_from(CONFIGS))
    def each(seed: int, name: str) -> None:
        (folder / name).write_text(json.dumps(mutated(kept[name], seed)))
        before = files(folder)
        code, _, err = answer("plan", "model=local", "model.path=mine", "hardware=cpu")
        check_answer(code, err)
        assert files(folder) == before
        (folder / name).write_text(json.dumps(kept[name]))

    each()
