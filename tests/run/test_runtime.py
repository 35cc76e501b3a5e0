"""Another Python runs a cell's worker: what it has is asked of it, and its rows say which it was."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from support.places import FAULTY_STEPS
from support.processes import STUB, gone, launch
from support.rows import ENVIRONMENT, a_cell, a_result, stubbed

import diffopt
from diffopt.config.resolve import cell_from_config, compose_requests, config_of_lock_file
from diffopt.errors import UsageError
from diffopt.machine import environment, interpreter, packages
from diffopt.machine.interpreter import Interpreter, ask_interpreter, interpreters, packages_for_workers
from diffopt.recipe import lock
from diffopt.results import study, table
from diffopt.results.reference import reference_row_of
from diffopt.run.sweep import run_all
from diffopt.schema.runtime import CURRENT, Runtime
from diffopt.schema.step import Requirements


def program(path, *lines):
    """A program of shell lines."""
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o755)
    return path


def named(requirement):
    return Requirement(requirement).name


def another(path, **versions):
    """A Python that says it has these versions (None: not there), of all else that a worker needs what is here.

    It counts how often it is asked in NAME.asked. Its worker is the stub, whose log begins with its PYTHONPATH."""
    fine = {name: packages.installed_version(name) for name in map(named, packages_for_workers())}
    found = {**fine, "pip": "25", **{name.replace("_", "-"): version for name, version in versions.items()}}
    pairs = [[name, version] for name, version in found.items() if version is not None]
    answer = json.dumps({"python": "3.12.4", "found": pairs})
    return program(
        path,
        f"if [ \"$2\" = -c ]; then echo x >> {path}.asked; echo '{answer}'; exit; fi",
        "echo $PYTHONPATH",
        f'exec {sys.executable} {STUB} "${{11}}" "$9"',
    )


def with_runtime(cell, name, python):
    data = cell.model_dump(mode="json")
    data["choices"]["runtime"] = name
    return cell_from_config({**data, "runtime": {"name": name, "python": str(python)}})


def asked(*words):
    (request,) = compose_requests(["hardware=cpu", "measure=quick", *words])
    return request.cell


# what is asked


def test_ids_have_the_name_of_a_runtime_and_not_its_path():
    plain = asked()
    assert plain.runtime == CURRENT
    data = plain.model_dump(mode="json")
    del data["runtime"]
    assert cell_from_config(data).id == plain.id  # what was asked before there was a choice
    one, moved, other = (
        with_runtime(plain, name, path) for name, path in (("a", "/x/python"), ("a", "/y/python"), ("b", "/x/python"))
    )
    assert one.id == moved.id
    assert len({plain.id, one.id, other.id}) == 3
    assert {plain.recipe.id} == {cell.recipe.id for cell in (one, moved, other)}


def test_an_option_of_ones_own_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "t210.yaml").write_text("defaults: [python, _self_]\npython: /venvs/t210/bin/python\n")
    found = compose_requests(["hardware=cpu", "runtime=current,t210"], multirun=True, trusted=[tmp_path])
    assert [request.cell.runtime for request in found] == [
        CURRENT,
        Runtime(name="t210", python="/venvs/t210/bin/python"),
    ]
    assert [request.cell.choices["runtime"] for request in found] == ["current", "t210"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["runtime=python"], "runtime=python names no interpreter: add runtime.python="),
        (["runtime.python=/x"], "runtime=current is the Python that runs diffopt. Choose runtime=python"),
        (["runtime.name=a"], "runtime=a names no interpreter"),
        (["runtime=python", "runtime.python=7"], "runtime.python=7"),
        (["runtime=python", "runtime.python=/x", "runtime.name=a/b"], "runtime.name=a/b"),
    ],
)
def test_a_runtime_that_cannot_be(words, says):
    with pytest.raises(UsageError) as caught:
        asked(*words)
    assert says in str(caught.value)


def test_two_interpreters_need_two_names():
    with pytest.raises(UsageError, match="/x and /y are both named 'python'"):
        compose_requests(["runtime=python", "runtime.python=/x,/y"], multirun=True)
    cells = [with_runtime(asked(), "a", path) for path in ("/x", "/y")]
    with pytest.raises(UsageError, match="both named 'a'"), interpreters(cell.runtime for cell in cells):
        pass


def test_a_recipe_file_has_the_runtime_and_older_ones_have_the_current(tmp_path):
    cell = asked("runtime=python", "runtime.python=/x")
    file = tmp_path / "cell.yaml"
    file.write_text(lock.recipe_to_yaml(cell))
    with pytest.raises(UsageError, match="names runtime.python=/x"):
        compose_requests([], lock=file)
    (request,) = compose_requests(["runtime.python=/x"], lock=file)
    assert (request.cell, request.cell.choices["runtime"]) == (cell, "python")
    assert compose_requests(["runtime.python=/y"], lock=file)[0].cell.runtime.python == "/y"
    assert compose_requests(["runtime=current"], lock=file)[0].cell.id == asked().id
    data = yaml.safe_load(lock.recipe_to_yaml(asked()))
    del data["runtime"]
    file.write_text(yaml.safe_dump(data))
    assert config_of_lock_file(file).data["runtime"] == CURRENT.model_dump()
    assert compose_requests([], lock=file)[0].cell.id == asked().id
    assert [key for key, *_ in lock.recipe_differences(asked(), cell)] == ["runtime.name", "runtime.python"]


# what is there


def test_a_python_is_asked_what_it_has(tmp_path):
    there = program(tmp_path / "other", f'exec {sys.executable} "$@"')
    with interpreters([CURRENT, Runtime(name="o", python=str(there))]) as found:
        (one,) = found.values()
        assert (one.name, one.python) == ("o", str(there))
        assert environment.installed_versions(one) == environment.installed_versions()
        assert one.installed("Types.PyYAML") == packages.installed_version("types-PyYAML")
        assert one.installed("no-such-package") is None
        assert packages.unmet_packages(packages_for_workers(), one) == ()


def test_it_is_asked_once_and_nothing_without_need(tmp_path):
    path = another(tmp_path / "python", torch="2.10.0")
    with interpreters([Runtime(name="o", python=str(path))] * 3) as found:
        assert found["o"].installed("torch") == "2.10.0"
        assert found["o"].version == "3.12.4"
    assert (tmp_path / "python.asked").read_text().split() == ["x"]
    with interpreters([CURRENT]) as found:
        assert found == {}


def test_the_code_of_this_diffopt_is_found_there_and_nothing_beside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "own"))
    code = "import diffopt.machine.paths, importlib.util, json, sys; print(json.dumps([diffopt.__file__, "
    code += "str(diffopt.machine.paths.shipped_conf()), importlib.util.find_spec('tests') is None, sys.path[:2]]))"
    with interpreters([Runtime(name="o", python=sys.executable)]) as found:
        there = found["o"]
        done = subprocess.run(
            [there.python, "-P", "-S", "-c", code],
            env={**os.environ, **there.variables},
            capture_output=True,
            check=True,
        )
        file, conf, alone, path = json.loads(done.stdout)
        assert os.path.samefile(file, diffopt.__file__)
        assert os.path.samefile(conf, interpreter.shipped_conf())
        assert alone
        assert path == [str(Path(file).parents[1]), str(tmp_path / "own")]
    assert not Path(file).exists()


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["echo 'Unknown option: -P' >&2", "exit 2"], ": Unknown option: -P."),
        (["exit 0"], "."),
        (["echo '{}'"], "."),
        (
            ["sleep 600 &", "echo $! > pid", "wait"],
            ": it did not answer within 0.5 s.",
        ),
    ],
    ids=["old", "silent", "other words", "slow"],
)
def test_what_is_no_python(tmp_path, monkeypatch, lines, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(interpreter, "ANSWER_S", 0.5)
    path = program(tmp_path / "python", *lines)
    with pytest.raises(UsageError) as caught:
        ask_interpreter(Runtime(name="o", python=str(path)), {})
    assert str(caught.value) == f"runtime=o: {path} is no Python 3.11 or newer that works{says}"
    if (tmp_path / "pid").exists():
        assert gone((tmp_path / "pid").read_text().strip())


def test_a_program_that_the_system_cannot_start(tmp_path):
    path = tmp_path / "python"
    path.write_bytes(b"\x00\x01")
    path.chmod(0o755)
    with pytest.raises(UsageError, match="works: Exec format error"):
        ask_interpreter(Runtime(name="o", python=str(path)), {})


@pytest.mark.parametrize("path", ["gone/python", "no-such-python", "."])
def test_a_wrong_path_is_told_by_plan_and_stops_run(cli, tmp_path, path):
    words = ["hardware=cpu", "runtime=python", f"runtime.python={path}"]
    reason = f"runtime=python: runtime.python={path} is no program here"
    code, out, _ = cli("plan", *words)
    assert (code, out.splitlines()[-1]) == (0, f"note: {reason}")
    code, out, _ = cli("plan", "--json", *words)
    assert json.loads(out)["cells"][0]["notes"] == [reason]
    code, _, err = cli("run", *words)
    assert code == 2
    assert err.startswith(f"diffopt: {reason}. Give the path")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["study=s1"], []], ids=["named", "fresh"])
def test_a_program_that_is_no_python_leaves_no_study(cli, tmp_path, monkeypatch, words):
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(there)
    python = program(tmp_path / "python", "exit 0")
    code, _, err = cli("run", "hardware=cpu", "runtime=python", f"runtime.python={python}", *words)
    assert code == 2
    assert err.startswith(f"diffopt: runtime=python: {python} is no Python 3.11 or newer that works")
    assert not list(there.iterdir())


def test_a_name_that_the_search_path_has_will_do(tmp_path, monkeypatch):
    another(tmp_path / "python9")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert ask_interpreter(Runtime(name="o", python="python9"), {}).python == str(tmp_path / "python9")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("python9")
    assert ask_interpreter(Runtime(name="o", python="./link"), {}).python == str(
        tmp_path / "link"
    )  # a venv's python is a link


def test_from_python_a_pipeline_is_made_in_this_one():
    with pytest.raises(UsageError, match="runtime=python is another Python.*use diffopt.run"):
        diffopt.load(overrides=["hardware=cpu", "runtime=python", "runtime.python=/x"])


# what it lacks


def there(pip="25", **versions):
    found = {name.replace("_", "-"): version for name, version in {**versions, "pip": pip}.items() if version}
    return Interpreter("o", "/a b/python", "3.12.4", found, {})


def test_what_an_interpreter_lacks_and_how_it_gets_it():
    floors = Requirements(packages=("torch>=2.10", "diffusers>=0.42", "torchao>=0.18"))
    step = Requirements(packages=("torchao>=0.18", "peft>=0.18"))
    built = Requirements(packages=("sageattention>=2.1.1",), install="build it")
    old = there(torch="2.9.1+cu126", diffusers="0.42.1")
    assert packages.reason_of_lacking([floors, step, built], old) == (
        "runtime=o needs torch>=2.10, torchao>=0.18, peft>=0.18: "
        "'/a b/python' -m pip install 'torch>=2.10' 'torchao>=0.18' 'peft>=0.18'\n"
        "runtime=o needs sageattention>=2.1.1: build it"
    )
    assert (
        packages.reason_of_lacking([floors], there(torch="2.10.0+cpu", diffusers="0.43.0.dev0", torchao="0.18")) is None
    )


def test_an_interpreter_without_pip_gets_that_first():
    assert packages.reason_of_lacking([Requirements(packages=("x",))], there(pip=None)) == (
        "runtime=o needs x: '/a b/python' -m ensurepip && '/a b/python' -m pip install 'x'"
    )


def test_markers_are_those_of_the_interpreter():
    texts = ("a; python_version < '3.12'", "b; python_version >= '3.12'", "c; python_full_version < '3.12.4'")
    assert packages.unmet_packages(texts, there()) == ("b; python_version >= '3.12'",)


def test_a_worker_needs_what_the_project_says_but_for_the_command_line():
    names = set(map(named, packages_for_workers()))
    assert {"torch", "diffusers", "transformers", "pydantic", "torchao"} <= names
    assert not {"hydra-core", "rich", "scipy"} & names
    block = "import sys; sys.modules.update(dict.fromkeys(('hydra', 'rich', 'scipy', 'diffopt.recipe.rules'))); "
    block += "import diffopt.pipeline.worker"
    subprocess.run([sys.executable, "-c", block], check=True)


def test_a_step_of_another_distribution_needs_that_one(monkeypatch):
    monkeypatch.syspath_prepend(FAULTY_STEPS)
    own = a_cell().recipe.precision
    foreign = type("Foreign", (), {"__module__": "faulty_steps"})()
    assert interpreter.packages_of_foreign_steps([own]) == ()
    assert interpreter.packages_of_foreign_steps([own, foreign]) == ("faulty-steps",)


# what is run


def test_one_sweep_over_two_interpreters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = [
        with_runtime(stubbed("ok"), "t210", another(tmp_path / "a", torch="2.10.0")),
        with_runtime(stubbed("ok"), "t211", another(tmp_path / "b", torch="2.11.0", diffopt_toolkit="0.0.1")),
    ]
    rows = run_all(cells, "s", launch())
    assert [(row.status, row.environment.versions["torch"]) for row in rows] == [("ok", "2.10.0"), ("ok", "2.11.0")]
    assert [row.cell["runtime"] for row in rows] == [{"name": name, "python": None} for name in ("t210", "t211")]
    assert {row.environment.versions["python"] for row in rows} == {"3.12.4"}
    (own,) = {row.environment.versions["diffopt-toolkit"] for row in rows}
    assert own == diffopt.__version__  # whose code it is, whatever lies there
    assert len({row.env_id for row in rows}) == 2
    for row in rows:
        folder = study.Study.open("s").folder(row.cell_id, row.env_id)
        assert str(tmp_path) not in (folder / "result.json").read_text()
        (path,) = (folder / "log.txt").read_text().split()
        assert not Path(path).exists()
    shown = table.results_table(rows)
    assert shown.headers[1:4] == ("runtime", "device", "torch")
    assert [(row[1], row[3]) for row in shown.rows] == [("t210", "2.10.0"), ("t211", "2.11.0")]


def test_a_runtime_that_lacks_something_is_a_row_and_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = another(tmp_path / "python", torch="2.9.0", torchao=None)
    cell = with_runtime(stubbed("ok"), "old", path)
    (row,) = run_all([cell], "s", launch())
    assert (row.status, row.phase) == ("refused", "load")
    needed = [text for text in packages_for_workers() if named(text) in ("torch", "torchao")]
    command = " ".join(f"'{text}'" for text in needed)
    assert row.reason == f"runtime=old needs {', '.join(needed)}: {path} -m pip install {command}"
    another(path, torch="2.10.0")
    (row,) = run_all([cell], "s", launch())
    assert row.status == "ok"


def test_what_a_step_needs_is_asked_of_the_runtime(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cell = a_cell("quant=int8_dynamic")
    kind = type(cell.recipe.quant)
    monkeypatch.setattr(kind, "requires", lambda self: Requirements(packages=("not-here-but-there>=1",)))
    path = another(tmp_path / "python", not_here_but_there="1.5")
    negative = cell.model_copy(update={"workload": stubbed("ok").workload})
    here, fine = run_all([negative, with_runtime(negative, "o", path)], "s", launch())
    assert (here.status, here.reason) == ("refused", "needs not-here-but-there>=1: pip install 'not-here-but-there>=1'")
    assert fine.status == "ok"


def test_starts_are_those_of_the_runtime(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cell = with_runtime(stubbed("start"), "o", another(tmp_path / "python"))
    cell = cell.model_copy(update={"measure": cell.measure.model_copy(update={"starts": True})})
    (row,) = run_all([cell], "s", launch())
    assert (row.status, row.metrics.starts.warm.compile_cache.hits) == ("ok", 1)


# what is told


def test_rows_of_two_runtimes_have_no_common_reference():
    reference = a_result(a_cell("precision=fp32"))
    fused = a_result(a_cell("fuse=qkv"))
    assert reference_row_of(fused, [reference, fused]) == reference
    del fused.cell["runtime"]  # a row of before there was a choice
    assert reference_row_of(fused, [reference, fused]) == reference
    other = a_result(with_runtime(a_cell("fuse=qkv"), "o", "/x"))
    assert other.env_id == reference.env_id
    assert reference_row_of(other, [reference, other]) is other, "by itself"
    own = a_result(with_runtime(a_cell("precision=fp32"), "o", "/x"))
    assert reference_row_of(other, [reference, own]) == own


def test_what_differs_in_the_runtime_alone_is_shown_side_by_side():
    newer = ENVIRONMENT.model_copy(update={"versions": {**ENVIRONMENT.versions, "torch": "2.14.0"}})
    rows = [
        a_result(a_cell(), choices={"runtime": "current"}),
        a_result(with_runtime(a_cell(), "t214", "/x"), choices={"runtime": "t214"}, environment=newer, env_id=newer.id),
    ]
    shown = table.results_table(rows)
    told = [dict(zip(shown.headers, row, strict=True)) for row in shown.rows]
    assert [(row["runtime"], row["torch"], row["status"]) for row in told] == [
        ("current", "2.13.0", "ok"),
        ("t214", "2.14.0", "ok"),
    ]
    assert "runtime.python" not in shown.headers


@pytest.mark.slow
def test_a_real_second_environment_runs_the_same_sweep(tmp_path, diffopt):
    """A venv of its own that borrows this one's libraries, but for those that only the command line imports."""
    venv.create(tmp_path / "other", with_pip=False)
    (own,) = (tmp_path / "other").glob("lib/python*/site-packages")
    (own / "borrowed.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")))
    for name in ("hydra", "rich"):
        (own / f"{name}.py").write_text("raise ImportError('not for workers')\n")
    (tmp_path / "conf" / "runtime").mkdir(parents=True)
    (tmp_path / "conf" / "runtime" / "other.yaml").write_text("defaults: [python, _self_]\npython: other/bin/python\n")
    words = ["-m", "runtime=current,other", "hardware=cpu", "compile=regional", "measure=quick", "workload.steps=2"]
    assert diffopt("run", *words, "study=two").returncode == 2, "whose folder is it?"
    done = diffopt("run", *words, "study=two", "--trust-config-dir", "conf")
    assert done.returncode == 0, done.stderr
    rows = {row.choices["runtime"]: row for row in study.Study.open(tmp_path / "studies" / "two").results()}
    assert {name: row.status for name, row in rows.items()} == {"current": "ok", "other": "ok"}
    assert len({row.cell_id for row in rows.values()}) == 2
    assert len({row.environment.versions["torch"] for row in rows.values()}) == 1
    assert rows["current"].env_id == rows["other"].env_id
    assert {tuple(e.group for e in row.effects) for row in rows.values()} == {("precision", "memory", "compile")}
    assert [line.split()[1] for line in done.stdout.splitlines()[:3]] == ["runtime", "current", "other"]
