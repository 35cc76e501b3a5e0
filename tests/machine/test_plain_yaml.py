"""YAML files as data: what is refused, and that shipped files are the same whether libyaml or Python scans them."""

from __future__ import annotations

import json

import pytest
import yaml

from diffopt.errors import UsageError
from diffopt.machine.paths import shipped_conf
from diffopt.machine.plain_yaml import read_plain_yaml

VALUES = """\
a: 1e3
b: 1_000
c: 0o17
d: yes
e: 012
f: -0.5
g: 2020-01-01
h: 1:30
i: 'é ☃'
j: >
  two
  lines
k: ~
"""


@pytest.fixture(params=[True, False], ids=["libyaml", "python"])
def scanner(request, monkeypatch):
    if request.param and not yaml.__with_libyaml__:
        pytest.skip("PyYAML was built without libyaml")
    monkeypatch.setattr(yaml, "__with_libyaml__", request.param)


def read(path):
    return json.dumps(read_plain_yaml(path), allow_nan=False)


def test_shipped_files_are_the_same_by_both_scanners(monkeypatch):
    assert yaml.__with_libyaml__, "PyYAML's wheels have it"
    paths = sorted(shipped_conf().rglob("*.yaml"))
    fast = [read(path) for path in paths]
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    assert len(paths) > 100
    assert [read(path) for path in paths] == fast


def test_values(tmp_path, scanner):
    (tmp_path / "values.yaml").write_text(VALUES, encoding="utf-8")
    assert read_plain_yaml(tmp_path / "values.yaml")[0] == {
        "a": 1000.0,
        "b": 1000,
        "c": "0o17",
        "d": True,
        "e": 10,
        "f": -0.5,
        "g": "2020-01-01",
        "h": 90,
        "i": "é ☃",
        "j": "two lines\n",
        "k": None,
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1\n", "line 1, column 4"),
        ("a: &x 1\nb: *x\n", r"line 2: write the value out, not an alias \(\*\)"),
        ("a: 1\na: 2\n", "duplicate key a"),
        ("a: !!python/object:os.system x\n", "python/object:os.system"),
        ("a: !own [1]\n", "'!own'"),
        ("a: 1\nb: !\n", r"line 2: write the value without a tag \(!\)"),
        ("\ta: 1\n", "line 1, column 1"),
        ("a: b: c\n", "line 1, column 5"),
        ('a: "open\n', "unexpected end of stream"),
        ("a: \x00b\n", "#x0000"),
        ("{a: 1}\n---\nb: 1\n", "single document"),
        ("? [a]\n: b\n", "unhashable key"),
        ("[" * 5000, "nested too deeply"),
        ("- 1\n", "must be a mapping"),
        ("1: a\n", "the key 1 is not a text"),
    ],
)
def test_what_is_no_plain_data_is_refused(text, says, tmp_path, scanner):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=says) as error:
        read_plain_yaml(path)
    assert str(path) in str(error.value)
