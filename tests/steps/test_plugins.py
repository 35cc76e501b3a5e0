"""Steps of other packages: one that cannot be loaded is named and left out, and only what needs it fails."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.places import REPO

from diffopt.machine import entry_points
from diffopt.schema import step
from diffopt.steps import plugins

Run = Callable[..., subprocess.CompletedProcess[str]]
HEAD = """
from typing import ClassVar, Literal
from diffopt.schema.step import Order, Step, register

"""
STEP = """
@register("layout")
class {name}(Step):
    order: ClassVar[Order] = Order.LAYOUT
    kind: Literal["{kind}"]
"""
GOOD = HEAD + STEP.format(name="Good", kind="good")
BROKEN = {
    "absent": ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
    "unparsed": ("def", "SyntaxError: invalid syntax"),
    "leaving": ("raise SystemExit(3)", "SystemExit: 3"),
    "raising": ("1 / 0", "ZeroDivisionError: division by zero"),
    "double": (
        HEAD + STEP.format(name="Mine", kind="mine") + STEP.format(name="Again", kind="channels_last"),
        "ValueError: layout: kind 'channels_last' is registered by ",
    ),
    "orderless": (
        HEAD + STEP.format(name="Mine", kind="mine").replace("    order: ClassVar[Order] = Order.LAYOUT\n", ""),
        "TypeError: Mine has no order",
    ),
    "kindless": (HEAD + STEP.format(name="Mine", kind="a").replace('Literal["a"]', "str"), "TypeError: Mine declares"),
    "stepless": (HEAD + '@register("layout")\nclass Mine:\n    kind: Literal["mine"]\n', "TypeError: Mine is no Step"),
    "untyped": (
        HEAD + STEP.format(name="Mine", kind="mine") + '    size: "NoSuchType"\n',
        "PydanticUndefinedAnnotation: name 'NoSuchType' is not defined",
    ),
}


def distribution(folder: Path, name: str, code: str, entries: bytes | None = None) -> None:
    """A package with a plug-in, as it lies in a site-packages."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_bytes(entries or f"[diffopt.steps]\n{name} = {name}\n".encode())
    (folder / f"{name}.py").write_text(code)


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[list[str], set[str]]]:
    """What is said of the plug-ins in tmp_path, and the kinds of layout then."""
    monkeypatch.setattr(step, "_registry", {group: dict(known) for group, known in step._registry.items()})
    monkeypatch.setattr(plugins, "_left_out", [])

    def call() -> tuple[list[str], set[str]]:
        monkeypatch.syspath_prepend(tmp_path)
        plugins.load_plugins()
        return list(map(str, plugins.plugins_left_out())), set(step.registered_step_kinds("layout"))

    return call


@pytest.mark.parametrize("kind", BROKEN)
def test_it_is_named_and_left_out_whole(
    kind: str, loaded: Callable[[], tuple[list[str], set[str]]], tmp_path: Path
) -> None:
    code, reason = BROKEN[kind]
    name = f"broken_{kind}"
    distribution(tmp_path, name, code)
    distribution(tmp_path, f"good_{kind}", GOOD)
    before = set(step.registered_step_kinds("layout"))
    (said,), after = loaded()
    assert said.startswith(f"the plug-in {name} ({name} 1.0) is left out: {reason}")
    assert "\n" not in said
    assert after == before | {"good"}


@pytest.mark.parametrize("entries", [b"[diffopt.steps]\nx = \xff\n", b"[diffopt.steps]\nno equals sign\n"])
def test_entry_points_that_cannot_be_read_hide_no_others(
    entries: bytes, loaded: Callable[[], tuple[list[str], set[str]]], tmp_path: Path
) -> None:
    distribution(tmp_path, "damaged", "", entries)
    distribution(tmp_path, f"good_{len(entries)}", GOOD)
    said, after = loaded()
    assert "good" in after
    assert ["damaged" in line and "left out" in line for line in said] == [True] * len(said) == [True]


def test_an_odd_target_is_no_module(loaded: Callable[[], tuple[list[str], set[str]]], tmp_path: Path) -> None:
    distribution(tmp_path, "odd", "", b"[diffopt.steps]\nodd = no module at all!\n")
    said, _ = loaded()
    assert len(said) == 1
    assert "odd" in said[0]
    assert entry_points.entry_points_of_plugins()[1] == {}


def test_other_recipes_work_and_the_one_that_needs_it_says_why(diffopt: Run, tmp_path: Path) -> None:
    for kind in ("absent", "leaving", "double"):
        distribution(tmp_path / "site", f"broken_{kind}", BROKEN[kind][0])
    distribution(tmp_path / "site", "good", GOOD)
    options = tmp_path / "conf" / "layout"
    options.mkdir(parents=True)
    (options / "mine.yaml").write_text("# from a package\nkind: mine\n")
    (options / "good.yaml").write_text("# from another package\nkind: good\n")
    env = {"PYTHONPATH": f"{REPO}:{tmp_path / 'site'}"}

    listed = diffopt("ls", "layout", env=env)
    assert listed.returncode == 0
    notes = listed.stderr.splitlines()
    assert [note.split(" (")[0] for note in sorted(notes)] == [
        f"diffopt: note: the plug-in broken_{kind}" for kind in ("absent", "double", "leaving")
    ]
    rows = {line.split()[0]: line for line in listed.stdout.splitlines()}
    assert "broken: layout.kind=mine: there is no such kind." in rows["mine"]
    assert "the plug-in broken_double (broken_double 1.0) is left out: ValueError" in rows["mine"]
    assert rows["good"].split()[-1] == rows["channels_last"].split()[-1] == "yes"

    planned = diffopt("plan", "layout=mine", env=env)
    assert planned.returncode == 2
    assert "Traceback" not in planned.stderr
    assert "It may be another package's: the plug-in broken_absent (broken_absent 1.0)" in planned.stderr


FAILING = {  # what the body of a step adds, and what is said of it
    "problems": ("def problems(self, site): return 1 / 0", "problems raises ZeroDivisionError: division by zero"),
    "late": ("def problems(self, site): yield 1 / 0", "Error iterating over object, error: ZeroDivisionError"),
    "odd": ("def problems(self, site): return (1,)", "problems gives what it must not: Input should be a valid string"),
    "requires": ("def requires(self): raise SystemExit('out')", "requires raises SystemExit: out"),
    "nothing": ("def requires(self): pass", "requires gives what it must not"),
    "unnamed": ("def requires(self): return Requirements(packages=('not a name!',))", "requires raises InvalidRequire"),
    "old": ("def requires(self): return Requirements(compute_capability='8')", "requires gives what it must not"),
    "traits": ("@property\n    def traits(self): return self.none", "traits raises AttributeError"),
    "listed": ("def traits_on(self, hardware): return ['x']", "traits_on gives what it must not"),
    "heavy": ("def weight_bytes(self, part, site): return float('nan')", "weight_bytes gives what it must not"),
    "quick": ("def activation_share(self, *args, **more): raise UsageError('so')", "share raises UsageError: so"),
    "refused": ("def problems(self, site): raise Refusal('a\\nb' * 999)", "problems raises Refusal: a b"),
}


def test_a_step_that_cannot_be_asked_is_refused_by_its_plugins_name(diffopt: Run, tmp_path: Path) -> None:
    code = HEAD + "from diffopt.errors import Refusal, UsageError\nfrom diffopt.schema.step import Requirements\n"
    for name, (body, _) in FAILING.items():
        code += STEP.format(name=name.title(), kind=name) + f"    {body}\n"
    code += STEP.format(name="Valid", kind="valid")
    code += "    @model_validator(mode='after')\n    def odd(self): return {}['gone']\n"
    distribution(tmp_path / "site", "failing", "from pydantic import model_validator\n" + code)
    options = tmp_path / "conf" / "layout"
    options.mkdir(parents=True)
    for name in (*FAILING, "valid"):
        (options / f"{name}.yaml").write_text(f"# of another package\nkind: {name}\n")
    env = {"PYTHONPATH": f"{REPO}:{tmp_path / 'site'}"}
    said = "the plug-in failing (failing 1.0) fails: "

    planned = diffopt("plan", "-m", f"layout=default,{','.join(FAILING)}", "hardware=a100", "--json", env=env)
    assert (planned.returncode, planned.stderr) == (0, "")
    cells = {cell["choices"]["layout"]: cell for cell in json.loads(planned.stdout)["cells"]}
    assert cells.pop("default")["status"] == "ok"
    for name, (_, why) in FAILING.items():
        (reason,) = cells[name]["reasons"]
        assert reason.startswith(f"layout={name}: {said}{name.title()}.")
        assert why in reason
        assert len(reason) < 600
        assert reason.endswith("; choose another layout, or another version of its package")

    listed = diffopt("ls", "layout", env=env)
    assert (listed.returncode, listed.stderr) == (0, "")
    rows = {line.split()[0]: line for line in listed.stdout.splitlines()}
    for name in (*FAILING, "valid"):
        assert f"broken: {said}" in rows[name]
    assert rows["channels_last"].endswith("yes")

    wrong = diffopt("plan", "layout=valid", env=env)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert f"{said}validating Valid raises KeyError: 'gone'" in wrong.stderr
