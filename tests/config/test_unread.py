"""What lies in a user's config folder and is never read is said, with what may be meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from diffopt.config.resolve import compose_requests
from diffopt.errors import UsageError

Cli = Callable[..., tuple[int, str, str]]
OPTION = "# Mine.\ndefaults: [none, _self_]\n"
UNREAD = {
    "a misspelt group": ({"quants/a.yaml": OPTION}, "quants: there is no group 'quants'. Did you mean quant?"),
    "another ending": ({"quant/a.yml": OPTION}, "quant/a.yml: the file of an option ends in .yaml: a.yaml"),
    "too deep": ({"quant/mine/a.yaml": OPTION}, "quant/mine: options lie right in the folder of their group, quant/"),
    "too high": ({"a.yaml": OPTION, "quant/b.yaml": OPTION}, "a.yaml: an option lies in the folder of its group"),
    "far from any group": ({"zzzz/a.yaml": OPTION, "quant/b.yaml": OPTION}, "zzzz: there is no group 'zzzz'"),
}


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("name", UNREAD)
def test_it_is_noted_in_a_plan_and_named_where_the_option_is_looked_for(cli: Cli, tmp_path: Path, name: str) -> None:
    files, said = UNREAD[name]
    written(tmp_path / "conf", files)
    code, out, _ = cli("plan", "hardware=cpu")
    assert code == 0
    assert f"note: config folder conf: not read are {said}" in out
    code, _, err = cli("plan", "quant=a")
    assert code == 2
    reason = said.partition(": ")[2]
    assert "is not read: " in err
    assert reason in err
    code, _, err = cli("ls", "launch")
    assert code == 0
    assert said in err


def test_it_is_in_the_row_without_the_way_to_the_folder(cli: Cli, tmp_path: Path) -> None:
    folder = written(tmp_path / "far" / "options", {"quants/a.yaml": OPTION})
    (request,) = compose_requests(["hardware=cpu"], folders=[folder])
    (note,) = request.cell.notes
    assert "config folder options" in note
    assert str(tmp_path) not in note


@pytest.mark.parametrize(
    "files",
    [
        {"quant/a.yaml": OPTION},
        {"quant/a.yaml": OPTION, "README.md": "text", "pictures/a.png": ""},
        {"config.yaml": "defaults: []\n", "database/postgres.yaml": "port: 1\n"},  # another program's
        {},
    ],
)
def test_a_folder_in_order_and_one_of_another_program_have_no_note(tmp_path: Path, files: dict[str, str]) -> None:
    (tmp_path / "conf").mkdir()
    (request,) = compose_requests(["hardware=cpu"], folders=[written(tmp_path / "conf", files)])
    assert request.cell.notes == ()


def test_a_recipe_that_chooses_it_tells_as_well(tmp_path: Path) -> None:
    recipe = "# @package _global_\n# Mine.\ndefaults:\n  - override /quant: a\n"
    folder = written(tmp_path / "conf", {"quants/a.yaml": OPTION, "recipe/mine.yaml": recipe})
    with pytest.raises(UsageError, match=r"no option 'a'.*quants/a.yaml is not read: .* Did you mean quant\?"):
        compose_requests(["recipe=mine"], folders=[folder])
