"""README and the pages of docs/: short enough, their links lead somewhere, and the commands they show are ones."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from PIL import Image
from support.documents import DOCUMENTS, GENERATED, PLACEHOLDER, Command, commands
from support.places import REPO

from diffopt.cli.main import VERBS, build_parser

LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
EXAMPLE = re.compile(r"<!-- file: (\S+\.yaml) -->\n```\w+\n(.*?)```", re.DOTALL)
PLANNED = ("run", "plan", "show", "diff", "ls")
# of the largest matrices; tests/config/test_sweep_*.py plan them in full
LARGE = {"sweep=pytorch2", "sweep=gpu_matrix"}
PART = ("model=sd15", "workload=txt2img", "workload.batch_size=1", "compile=none")

Cli = Callable[..., tuple[int, str, str]]


def shown() -> list[Command]:
    """Each command once, where it stands first."""
    found = [one for page in DOCUMENTS if page.name not in GENERATED for one in commands(page)]
    return list({one.words: one for one in reversed(found)}.values())[::-1]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_readme_is_short() -> None:
    assert len((REPO / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", DOCUMENTS, ids=[page.name for page in DOCUMENTS])
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


def test_every_page_of_docs_is_linked_from_the_readme_or_contributing() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in (REPO / "README.md", REPO / "CONTRIBUTING.md")
        for link in LINK.findall(page.read_text(encoding="utf-8"))
    }
    assert sorted(set((REPO / "docs").glob("*.md")) - linked) == []


def points(page: Path) -> list[str]:
    """The paragraphs, list items and rows of tables of a page, without what stands between fences."""
    blocks = re.split(r"\n\s*\n", FENCE.sub("", page.read_text(encoding="utf-8")))
    found: list[str] = []
    for block in blocks:
        if block.startswith("|"):
            found += block.splitlines()[2:]  # below the names of the columns
        else:
            found += re.split(r"^(?=- )", block, flags=re.MULTILINE)
    return [point.strip() for point in found if point.strip() and not point.startswith("#")]


@cache
def functions(path: str) -> set[str]:
    tree = ast.parse((REPO / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_each_point_of_what_is_safe_names_its_tests() -> None:
    found = points(REPO / "docs" / "security.md")
    assert len(found) > 40
    for point in found:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", point)
        assert named, f"no test holds this: {point}"
        for path, name in named:
            assert name in functions(path), f"{path} has no {name}"
        assert point.rstrip("|. :").endswith(("`", "`)")), f"no test holds its last sentence: {point}"


def test_commands_are_found_as_a_shell_reads_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\ndiffopt show a=b > c.yaml  # says\nscripts/demo && diffopt ls 'x > y' | head\n```\n"
        "```console\n$ diffopt run \\\n  -m a=1,2\ndiffopt: a line of its output\n```\n```text\ndiffopt no\n```\n"
    )
    assert [one[1:] for one in commands(page)] == [
        (("show", "a=b"), "c.yaml"),
        (("ls", "x > y"), None),
        (("run", "-m", "a=1,2"), None),
    ]


@pytest.mark.parametrize("command", shown(), ids=str)
def test_a_command_is_one_of_diffopts(command: Command) -> None:
    """Its verb exists and takes its flags."""
    assert command.words[0] in VERBS
    build_parser(command.words[0]).parse_intermixed_args(list(command.words[1:]))


def test_commands_compose(cli: Cli, tmp_path: Path) -> None:
    """Every one that composes something, in one working directory and in order, so that files come before readers."""
    for page in DOCUMENTS:
        for name, text in EXAMPLE.findall(page.read_text(encoding="utf-8")):
            if "int5" not in name and "every_nth" not in name:  # those need a package: test_contributing.py has it
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(text, encoding="utf-8")
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    tried = 0
    for command in shown():
        verb, *words = command.words
        if verb not in PLANNED or any(PLACEHOLDER.search(word) for word in words):
            continue
        words += PART if LARGE & set(words) else ()
        code, out, err = cli("plan" if verb == "run" else verb, *words)
        assert code == 0, f"{command}\n{err}"
        if command.output is not None:
            (tmp_path / command.output).write_text(out, encoding="utf-8")
        tried += 1
    assert tried > 40
