"""diffopt.machine.tested: what is newer than what was tested is said, a build of the tested version is not."""

from __future__ import annotations

import pytest

from diffopt.machine import tested


def test_the_pins_of_what_diffopt_asks_for() -> None:
    pins = tested.tested_versions()
    assert {"torch", "diffusers", "hydra-core", "huggingface-hub", "pyyaml"} <= pins.keys()
    assert "pytest" not in pins
    assert "jinja2" not in pins, "torch's own affair"


@pytest.mark.parametrize(
    ("here", "newer"),
    [
        ({"torch": "2.13.0+cpu"}, {}),
        ({"torch": "2.12.9"}, {}),
        ({"torch": None}, {}),
        ({"torch": "2.14.0.dev20270101+cu130"}, {"torch": ("2.14.0.dev20270101+cu130", "2.13.0")}),
        ({"torch": "2.13.0.post1", "diffusers": "0.42.1"}, {"torch": ("2.13.0.post1", "2.13.0")}),
        ({"torch": "of my own"}, {}),
    ],
)
def test_only_what_is_newer(
    here: dict[str, str | None], newer: dict[str, tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tested, "tested_versions", lambda: {"torch": "2.13.0", "diffusers": "0.42.1"})
    monkeypatch.setattr(tested, "installed_version", here.get)
    assert tested.newer_than_tested() == newer
    says, remedy = tested.tested_versions_in_words()
    if newer:
        assert says == f"newer than tested: torch {here['torch']} (tested 2.13.0)"
        assert remedy is not None
        assert remedy.endswith("pip install torch==2.13.0")
    else:
        assert (says, remedy) == ("no package is newer than what diffopt was tested with", None)
