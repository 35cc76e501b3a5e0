"""The public names and the command line are frozen here: a change of either is a change of this file."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from support.rows import a_result

import diffopt
from diffopt.cli import main
from diffopt.cli.main import VERBS
from diffopt.results.study import Study

Cli = Callable[..., tuple[int, str, str]]
CLI = Path(main.__file__).parent


def test_public_names() -> None:
    assert diffopt.__all__ == [
        "Cell", "DiffoptError", "NoEffect", "Recipe", "Refusal", "Result", "Study", "UsageError", "compose", "load",
        "optimize", "plan", "run", "save_quantized",
    ]  # fmt: skip
    for name in diffopt.__all__:
        assert getattr(diffopt, name).__name__ == name
        assert getattr(diffopt, name).__doc__


def test_verbs_and_their_flags() -> None:
    assert {name: verb.flags for name, verb in VERBS.items()} == {
        "run": ("--multirun", "--force", "--no-deep", "--recipe", "--config-dir", "--trust-config-dir"),
        "plan": ("--multirun", "--deep", "--recipe", "--config-dir", "--trust-config-dir", "--json"),
        "ls": ("--config-dir", "--trust-config-dir"),
        "show": ("--recipe", "--config-dir", "--trust-config-dir"),
        "diff": ("--config-dir", "--trust-config-dir"),
        "report": ("--reference", "--csv", "--pictures", "--like", "--published", "--charts", "--gpu"),
        "check": ("--recipes", "--all", "--compile", "--config-dir", "--trust-config-dir"),
        "prefetch": ("--multirun", "--recipe", "--config-dir", "--trust-config-dir"),
        "compare": ("--slower", "--json"),
        "doctor": ("--json",),
        "env": ("--json", "--config-dir", "--trust-config-dir"),
    }


def test_each_verb_is_a_function_of_its_own_in_a_module_that_has_another_name() -> None:
    modules = {path.stem for path in CLI.glob("*.py")}
    assert not modules & set(main.VERBS)
    assert len({verb.call for verb in main.VERBS.values()}) == len(main.VERBS)
    for verb in main.VERBS.values():
        module, _, function = verb.call.partition(":")
        assert module in modules
        assert getattr(import_module(f"diffopt.cli.{module}"), function).__module__ == f"diffopt.cli.{module}"


def test_imports_stand_at_the_top_of_their_modules() -> None:
    """The one dispatcher imports by name; of the reports only those of a named reference or sweep need Hydra."""
    inside = {
        (path.stem, function.name)
        for path in CLI.glob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("diffopt")
        or isinstance(node, ast.Import)
        and any(alias.name.startswith("diffopt") for alias in node.names)
    }
    assert inside == {("reports", "_reference"), ("reports", "_sweep")}


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"], ["nope"]])
def test_help_imports_no_more_than_the_command_line(words: list[str]) -> None:
    code = (
        "import sys; from diffopt.cli.main import main; main(sys.argv[1:]);"
        "print(*sorted(name for name in sys.modules if name.partition('.')[0] in "
        "('diffopt', 'hydra', 'omegaconf', 'pydantic', 'yaml', 'rich')), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1].split() == [
        "diffopt", "diffopt.cli", "diffopt.cli.main", "diffopt.cli.streams", "diffopt.errors", "diffopt.machine",
        "diffopt.machine.garbage", "diffopt.schema", "diffopt.schema.words", "diffopt.version",
    ]  # fmt: skip


def test_a_report_needs_no_hydra(tmp_path: Path) -> None:
    Study.create(tmp_path / "s").keep(a_result())
    code = (
        "import sys; from diffopt.cli.main import main; code = main(sys.argv[1:]); assert 'hydra' not in sys.modules;"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, "report", f"{tmp_path}/s"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_groups() -> None:
    from diffopt.config import Composer

    assert set(Composer().groups) == {
        "attention", "cache", "compile", "fuse", "hardware", "launch", "layout", "lora", "measure", "memory", "model",
        "precision", "quality", "quant", "recipe", "runtime", "scheduler", "sweep", "vae", "workload",
    }  # fmt: skip


@pytest.mark.parametrize("verb", [[], *([name] for name in VERBS)])
def test_help(cli: Cli, verb: list[str]) -> None:
    code, out, err = cli(*verb, "--help")
    assert code == 0
    assert out.startswith("usage: diffopt")
    assert err == ""


def test_version(cli: Cli) -> None:
    assert cli("--version") == (0, f"diffopt {diffopt.__version__}\n", "")


WITHOUT_TORCH = {
    "help": ["--help"],
    "ls": ["ls"],
    "ls attention": ["ls", "attention"],
    "ls hardware": ["ls", "hardware"],
    "ls model": ["ls", "model"],
    "prefetch": ["prefetch", "model=tiny"],
    "show": ["show", "recipe=pytorch2"],
    "diff": ["diff", "baseline", "pytorch2"],
    "plan": ["plan", "model=sd15", "hardware=a100"],
    "plan -m": ["plan", "-m", "compile=none,default", "--json"],
    "report --published": ["report", "--published", "pytorch2"],
    "env": ["env"],
    "cfg": ["show", "--cfg", "job"],
    "info": ["show", "--info", "defaults"],
}


def test_no_verb_but_run_imports_torch(tmp_path: Path) -> None:
    """One after the other in one process that has nothing else in it."""
    code = """if True:
        import contextlib, io, json, sys
        from diffopt.cli.main import main
        for name, words in json.loads(sys.argv[1]).items():
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
                code = main(words)
            bad = sorted({"torch", "diffusers", "transformers", "torchao", "accelerate"} & set(sys.modules))
            print(json.dumps([name, code, bool(out.getvalue()), err.getvalue(), bad]))
    """
    words = [sys.executable, "-c", code, json.dumps(WITHOUT_TORCH)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        [name, 0, True, "", []] for name in WITHOUT_TORCH
    ]


def test_the_parent_of_a_run_does_not_import_torch(tmp_path: object) -> None:
    code = (
        "import sys; from diffopt.cli.main import main;"
        "code = main(['run', 'hardware=a100', 'study=x', 'measure=quick']);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=str(tmp_path), capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "refused" in done.stdout
    assert "hardware=a100" in done.stdout


def test_hydras_own_flags(cli: Cli) -> None:
    code, out, err = cli("run", "--cfg", "job", "compile=default")
    assert code == 0, err
    assert "fullgraph: " in out
    code, out, err = cli("plan", "--info", "defaults", "recipe=pytorch2")
    assert code == 0, err
    assert "compile/reduce_overhead" in out
    code, _, err = cli("run", "--cfg", "job", "compile=nope")
    assert code == 2
    assert "Traceback" not in err
