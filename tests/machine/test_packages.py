"""Installed distributions: what is missing, and how to get it."""

from diffopt.machine import packages
from diffopt.schema.step import Requirements


def test_what_is_missing_in_order_and_once():
    asked = ["no-such-package>=2", "pydantic>=2", "pydantic>=99", "no-such-package>=2", "other-thing"]
    assert packages.unmet_packages(asked) == ("no-such-package>=2", "pydantic>=99", "other-thing")


def test_a_requirement_for_another_platform_is_met():
    assert packages.unmet_packages(["no-such-package; sys_platform == 'beos'"]) == ()


def test_the_remedy_can_be_pasted():
    assert packages.how_to_install(["xformers>=0.0.29"]) == "needs xformers>=0.0.29: pip install 'xformers>=0.0.29'"


def test_a_package_that_pip_alone_does_not_get_says_how():
    assert packages.how_to_install(["sageattention>=9"], "build it") == "needs sageattention>=9: build it"


def test_all_missing_packages_of_a_cell_are_said_at_once():
    present, pip, built = (
        Requirements(packages=("packaging",)),
        Requirements(packages=("no-such-package>=2",)),
        Requirements(packages=("another-one",), install="build it"),
    )
    assert packages.reason_of_lacking([present]) is None
    assert packages.reason_of_lacking([present, pip, built, pip]) == (
        "needs no-such-package>=2: pip install 'no-such-package>=2'\nneeds another-one: build it"
    )
