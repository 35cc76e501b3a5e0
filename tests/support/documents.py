"""The documents, and the command lines that they show."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support.places import REPO

DOCUMENTS = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").rglob("*.md"))]
GENERATED = {"coverage.md", "pairs.md", "tiny-matrix-cpu.md", "pytorch2-tiny-cpu.md"}
BLOCK = re.compile(r"^```(bash|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# a new file of the repository; lines of a table or a class in a file of it; commands in a folder of it
NEW = re.compile(r"<!-- new: (\S+) -->\n```\w+\n(.*?)^```", re.DOTALL | re.MULTILINE)
INTO = re.compile(r"<!-- into: (\S+) (\w+) -->\n```\w+\n(.*?)^```", re.DOTALL | re.MULTILINE)
INSIDE = re.compile(r"<!-- run: (\S+) -->\n```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
# words of a command that stand for a reader's own
PLACEHOLDER = re.compile(r"(^|[=/])(NAME|FILE|DIR|SHA|ORG|GPU|HASH|t210)\b|/path/|/venvs?/")


class Command(NamedTuple):
    """A ``diffopt`` command as a document shows it, and the file that its output goes to."""

    document: Path
    words: tuple[str, ...]
    output: str | None

    def __str__(self) -> str:
        return f"{self.document.name}: diffopt {shlex.join(self.words)}"


def commands(document: Path) -> Iterator[Command]:
    """Every command line of the document's shell blocks that begins with ``diffopt``, in its order."""
    for kind, text in BLOCK.findall(document.read_text(encoding="utf-8")):
        lines = text.replace("\\\n", " ").splitlines()
        if kind == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in lines:
            yield from (Command(document, *one) for one in _split(line))


def new_files(page: str = "CONTRIBUTING.md") -> dict[str, str]:
    """What the page adds to the repository: text by path."""
    return dict(NEW.findall((REPO / page).read_text(encoding="utf-8")))


def copy_repository(to: Path) -> Path:
    """What a contributor changes, where changing it harms nobody."""
    unneeded = shutil.ignore_patterns("__pycache__", "*.pyc", "wheelhouse")
    for name in ("diffopt", "conf", "tests", "scripts"):
        shutil.copytree(REPO / name, to / name, ignore=unneeded)
    shutil.copy(REPO / "pyproject.toml", to)
    return to


def insert_into(copy: Path, path: str, name: str, lines: str) -> None:
    """Put the lines at the head of a table, or of a class's fields."""
    text = (copy / path).read_text(encoding="utf-8")
    head = re.search(rf'^{name}\b.*?\{{\n|^class {name}\(.*?""".*?"""\n', text, re.DOTALL | re.MULTILINE)
    assert head is not None, f"{path} has no {name}"
    (copy / path).write_text(text[: head.end()] + lines + text[head.end() :], encoding="utf-8")


def python_in(copy: Path, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python with the packages of a copy of the repository, in it unless told where."""
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=cwd or copy, env=environment, capture_output=True, text=True, timeout=600)


def _split(line: str) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """The commands of a line, each with the file after its ``>``; what comes after a pipe is no command of ours."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word in (";", "&&", "|", "||"):
            if words[:1] == ["diffopt"]:
                to = words.index(">") if ">" in words else len(words)
                yield tuple(words[1:to]), (words[to + 1] if to < len(words) else None)
            words = []
        else:
            words.append(word)
