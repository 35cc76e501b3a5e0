"""diffusers read as text, so that tests can compare what is said of its classes without importing torch."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Source(NamedTuple):
    """A class of diffusers."""

    node: ast.ClassDef

    def function(self, name: str) -> ast.FunctionDef | None:
        return next((n for n in self.node.body if isinstance(n, ast.FunctionDef) and n.name == name), None)

    def arguments(self, name: str) -> set[str]:
        """Names of the arguments of a method; none where the class has no such method of its own."""
        found = self.function(name)
        return set() if found is None else {a.arg for a in (*found.args.args, *found.args.kwonlyargs)} - {"self"}


@cache
def class_names(folder: str) -> dict[str, str]:
    """The classes that the modules below a folder of diffusers define, each with its text."""
    found = importlib.util.find_spec("diffusers")
    assert found is not None
    assert found.submodule_search_locations is not None
    texts: dict[str, str] = {}
    for path in sorted((Path(found.submodule_search_locations[0]) / folder).rglob("*.py")):
        for text in re.split(r"^(?=class )", path.read_text(encoding="utf-8"), flags=re.M)[1:]:
            body = re.match(r".*\n(?:(?:[ )\]#].*)?\n)*", text)  # up to what is not indented
            texts[re.split(r"\W", text[6:], maxsplit=1)[0]] = body[0] if body else text
    return texts


@cache
def class_in(folder: str, name: str) -> Source:
    """One of these classes."""
    (node,) = ast.parse(class_names(folder)[name]).body
    assert isinstance(node, ast.ClassDef)
    return Source(node)
