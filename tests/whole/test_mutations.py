"""Recipe files, rows, model configs, options, matrices and LoRAs, mutated: an answer or a paragraph, nothing touched.

Half of the examples have other values, half other bytes.
"""

from __future__ import annotations

import copy
import functools
import io
import json
import operator
import random
import shutil
from collections.abc import Callable, Iterator
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

FEW, MANY = 24, 850  # examples of each kind, in the fast and in the slow suite
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


NASTY = [
    b"",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\n",
    b"\t",
    b"- ",
    b": ",
    b"&a *a",
    b'"',
    b"'",
    b"{",
    b"[",
    b"[" * 3000,
]
NASTY += [b"!!python/object:os.system x", b"{a: " * 300, b"9" * 400, b"\\ud800", b"${oc.env:HOME}", b"\x1b[2J"]
NASTY += [b"# @package _global_\n", b""]


def other_bytes(content: bytes, seed: int) -> bytes:
    """The content with one to three pieces left out, doubled, moved, or replaced by something nasty."""
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 3)):
        start = chance.randrange(len(content) + 1)
        end = start + chance.choice([0, 1, 4, 40, len(content)])
        piece = content[start:end]
        instead = chance.choice(
            [*NASTY, piece * 2, piece[::-1], bytes(byte ^ 1 << chance.randrange(8) for byte in piece)]
        )
        content = content[:start] + instead + content[end:]
    return content


def spoiled(data: Any, seed: int, dumps: Callable[[Any], str]) -> bytes:
    """What a file of the data has after a mutation."""
    if seed % 2:
        return other_bytes(dumps(data).encode("utf-8", "surrogatepass"), seed)
    return dumps(mutated(data, seed)).encode("utf-8", "surrogatepass")


def answer(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(list(words))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 2
    return code, out.getvalue(), err.getvalue()


def files(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Whatever lies in a folder: modes, times, links, contents."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        content = path.read_bytes() if path.is_file() and about.st_size < 10**5 else b""
        found[str(path)] = (about.st_mode, about.st_size, about.st_mtime_ns, content)
    return found


def check(home: Path, *words: str) -> None:
    """The command ends in order, and nothing that was there before is another, nor anything there that was not."""
    before = files(home.parent)
    code, _, err = answer(*words)
    assert code in (0, 1, 2)
    assert "Traceback" not in err
    assert code == 0 or err.startswith("diffopt: "), err
    assert files(home.parent) == before


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory; beside it something that is nobody's business, and elsewhere the user's cache."""
    folder, cache = tmp_path_factory.mktemp("all") / "home", tmp_path_factory.mktemp("cache")
    folder.mkdir()
    (folder.parent / "x").mkdir()
    (folder.parent / "x" / "canary").write_text("the canary")
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield folder


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


OPTION = {"defaults": ["regional", "_self_"], "mode": "default", "fullgraph": False}
MATRIX = {"axes": {"compile": ["none", "regional"], "workload.seed": [1, 2]}, "exclude": [{"compile": "none"}]}
LORA = {
    "unet.conv_in.lora_A.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    "unet.conv_in.lora_B.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
}


@COUNTS
def test_recipe_files(home: Path, count: int) -> None:
    @examples(count)
    @given(SEEDS)
    def each(seed: int) -> None:
        (home / "f.yaml").write_bytes(spoiled(RECIPE, seed, yaml.safe_dump))
        check(home, "plan", "--recipe", "f.yaml")

    each()


@COUNTS
def test_rows(home: Path, count: int) -> None:
    study = Study.create("rows")
    study.keep(ROW)
    study.keep(ROW.model_copy(update={"cell_id": "0" * 12, "cell": {**ROW.cell, "choices": {}}}))
    (file,) = study.path.glob(f"cells/{a_cell().id}/*/result.json")
    data = json.loads(file.read_text())

    @examples(count)
    @given(SEEDS, st.sampled_from([["report", "rows"], ["report", "rows", "--csv"], ["compare", "rows", "rows"]]))
    def each(seed: int, words: list[str]) -> None:
        file.write_bytes(spoiled(data, seed, json.dumps))
        check(home, *words)

    each()


@COUNTS
def test_model_configs(home: Path, count: int) -> None:
    folder = home / "mine"
    shutil.copytree(PACKAGED / "tiny", folder, dirs_exist_ok=True)
    kept = {name: json.loads((folder / name).read_text()) for name in CONFIGS}

    @examples(count)
    @given(SEEDS, st.sampled_from(CONFIGS))
    def each(seed: int, name: str) -> None:
        (folder / name).write_bytes(spoiled(kept[name], seed, json.dumps))
        check(home, "plan", "model=local", "model.path=mine", "hardware=cpu")
        (folder / name).write_text(json.dumps(kept[name]))

    each()


@COUNTS
@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("compile/mine", OPTION, ["plan", "compile=mine"]),
        ("sweep/mine", MATRIX, ["plan", "-m", "sweep=mine"]),
    ],
    ids=["option", "matrix"],
)
def test_config_folders(home: Path, count: int, name: str, data: Any, words: list[str]) -> None:
    file = home / "conf" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)

    @examples(count)
    @given(SEEDS)
    def each(seed: int) -> None:
        file.write_bytes(spoiled(data, seed, yaml.safe_dump))
        check(home, *words)

    each()
    shutil.rmtree(home / "conf")


@COUNTS
def test_headers_of_loras(home: Path, count: int) -> None:
    @examples(count)
    @given(SEEDS)
    def each(seed: int) -> None:
        header = spoiled(LORA, seed, json.dumps)
        length = len(header) if seed % 5 else random.Random(seed).choice([0, 2**63, 10**8 + 1, len(header) + 9])
        (home / "f.safetensors").write_bytes(length.to_bytes(8, "little") + header + bytes(8))
        check(home, "plan", "model=sd15", "lora=fused", "lora.path=f.safetensors")

    each()
