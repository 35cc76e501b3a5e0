"""Names say what they stand for: no two things of one name, no function named by a mere particle, no module renamed."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.places import REPO

VAGUE = frozenset({"told", "left", "lost", "idle", "alone", "of", "at", "on"})
ONCE = ("models", "pipeline", "recipe", "steps")  # packages in which private functions and classes have a name each too
SAME = {  # for one thing in several places: a verb is what Python calls by that name, and a launcher runs
    "main": ["cli/main.py", "doctor/worker.py", "pipeline/worker.py"],
    "run": ["api.py", "run/launchers/local.py"],
}


def files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((REPO / folder).rglob("*.py"))


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def functions(code: ast.Module) -> Iterator[str]:
    for node in ast.walk(code):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def renamed_modules(code: ast.Module) -> Iterator[str]:
    """Modules of diffopt that an import gives another name."""
    for node in ast.walk(code):
        origin = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
            name = origin + alias.name
            if alias.asname not in (None, alias.name) and name.startswith("diffopt") and is_module(name):
                yield f"{name} as {alias.asname}"


def is_module(name: str) -> bool:
    place = REPO / name.replace(".", "/")
    return place.is_dir() or place.with_suffix(".py").is_file()


def top_level(code: ast.Module) -> Iterator[str]:
    """Functions, classes and types that the module defines; constants are its own affair."""
    for node in code.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        for target in node.targets if isinstance(node, ast.Assign) else ():
            if isinstance(target, ast.Name) and re.fullmatch("[A-Z][a-zA-Z0-9]*[a-z][a-zA-Z0-9]*", target.id):
                yield target.id


def test_functions_and_classes_have_a_name_each() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for file in files("diffopt"):
        place = file.relative_to(REPO / "diffopt")
        for name in top_level(tree(file)):
            if place.parts[0] in ONCE or not name.startswith("_"):
                places[name].append(str(place))
    assert len(places) > 800
    assert {name: sorted(found) for name, found in places.items() if len(found) > 1} == SAME


def test_no_function_has_a_name_that_says_nothing() -> None:
    found = [(file.name, name) for file in files("diffopt", "scripts") for name in functions(tree(file))]
    assert [(file, name) for file, name in found if name.strip("_") in VAGUE] == []


def test_no_import_renames_a_module() -> None:
    found = [(file.name, text) for file in files("diffopt", "scripts", "tests") for text in renamed_modules(tree(file))]
    assert found == []


@pytest.mark.parametrize("line", ["from diffopt.models import lora as files", "import diffopt.models.lora as files"])
def test_a_renamed_module_would_be_found(line: str) -> None:
    assert [*renamed_modules(ast.parse(line))] == ["diffopt.models.lora as files"]
    assert [*renamed_modules(ast.parse("from diffopt.models.lora import checked_lora_file as other"))] == []
