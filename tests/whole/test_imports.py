"""Who imports whom: no circles, every module by itself, no torch before a worker needs it, and few hidden imports.

import-linter holds the order of the packages (pyproject.toml); here stands what it has no contract for.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest
from support.places import REPO

PACKAGE = REPO / "diffopt"
HEAVY = ("torch", "diffusers", "torchao", "transformers", "peft", "accelerate")
LIGHT = ("cli", "config", "recipe", "results", "run")  # packages of the process that only starts workers
# Imports of diffopt's own modules inside functions, by package; any other has none. Each keeps torch or start-up time
# out of a verb, and says so where it stands. To lower a number is always right.
HIDDEN = {"api": 6, "cli": 2, "doctor": 1, "pipeline": 6, "steps": 5}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


MODULES = [module_name(file) for file in files()]


def circle(edges: Mapping[str, set[str]]) -> list[str] | None:
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


@pytest.fixture(scope="module")
def edges() -> dict[str, set[str]]:
    """Modules and what each imports, whether at its top, inside a function or for its annotations."""
    graph = grimp.build_graph("diffopt", cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def test_no_modules_import_each_other_in_a_circle(edges: dict[str, set[str]]) -> None:
    assert len(edges) == len(MODULES)
    assert circle(edges) is None


def test_no_packages_import_each_other_in_a_circle(edges: dict[str, set[str]]) -> None:
    for depth in (2, 3):
        packages: dict[str, set[str]] = {}
        for module, imported in edges.items():
            own = package(module, depth)
            packages.setdefault(own, set()).update({package(other, depth) for other in imported} - {own})
        assert circle(packages) is None


def package(module: str, depth: int) -> str:
    return ".".join(module.split(".")[:depth])


def test_a_circle_would_be_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) is not None


# With the libraries loaded once, each fork is an interpreter of its own. It has what stands below the module's package,
# which cannot import it, and the package's __init__, which Python imports before any of its modules.
ALONE = """
import importlib, json, os, sys, traceback
import accelerate, diffusers, hydra, peft, PIL.Image, pydantic, torch, torchao, transformers, yaml
assert not [name for name in sys.modules if name.startswith("diffopt")]
def alone(module):
    child = os.fork()
    if not child:
        try:
            importlib.import_module(module)
        except BaseException:
            print(module, traceback.format_exc(), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, module
for first, *others in json.load(sys.stdin):
    alone(first)
    importlib.import_module(first)
    for module in others:
        alone(module)
    for module in others:
        importlib.import_module(module)
"""


def from_below() -> list[list[str]]:
    """The packages as import-linter has them, the lowest first; of each its modules, itself before them."""
    settings = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    packages = [name for layer in reversed(layers) for name in layer.split(" | ")]
    return [["diffopt"], *([module for module in MODULES if package(module, 2) == name] for name in packages)]


@pytest.mark.slow
def test_every_module_can_be_the_first_of_its_package_that_is_imported() -> None:
    order = from_below()
    assert {*MODULES} - {module for modules in order for module in modules} == {"diffopt.__main__"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], input=json.dumps(order), capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("", 0), done.stderr


def imported_by(modules: list[str], wanted: tuple[str, ...] = HEAVY) -> str:
    """The first of the modules that brings something heavy, with what it brings; in a process of its own."""
    code = (
        "import importlib, sys\n"
        f"for module in {modules}:\n"
        "    importlib.import_module(module)\n"
        f"    if found := [name for name in {wanted} if name in sys.modules]:\n"
        "        sys.exit(f'{module} imports {found}')\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr.strip()


def test_a_recipe_is_described_without_the_libraries() -> None:
    assert imported_by(["diffopt.recipe.recipe"]) == ""


def test_the_process_that_starts_workers_never_imports_the_libraries() -> None:
    light = [module for module in MODULES if package(module, 2).rpartition(".")[2] in LIGHT]
    assert len(light) > 40
    assert imported_by(light) == ""


def test_a_library_would_be_found() -> None:
    modules = ["diffopt.errors", "diffopt.schema.record", "diffopt.schema.step"]
    assert imported_by(modules, ("torch", "pydantic")) == "diffopt.schema.record imports ['pydantic']"


def hidden_imports(file: Path) -> set[int]:
    """Lines of the imports of diffopt's own modules inside of functions."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = (node for part in ast.walk(tree) if isinstance(part, functions) for node in ast.walk(part))
    return {node.lineno for node in inside if "diffopt" in imported_roots(node)}  # type: ignore[attr-defined]


def imported_roots(node: ast.AST) -> set[str]:
    """The packages that a statement imports from."""
    if isinstance(node, ast.ImportFrom):
        return {str(node.module).split(".")[0]}
    return {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()


def test_few_imports_are_hidden_in_functions() -> None:
    found = Counter(module_name(file).split(".")[1] for file in files()[1:] for _ in hidden_imports(file))
    assert {name: count for name, count in found.items() if count > HIDDEN.get(name, 0)} == {}
