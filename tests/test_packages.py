from diffopt import packages


def test_what_is_missing_in_order_and_once():
    asked = ["no-such-package>=2", "pydantic>=2", "pydantic>=99", "no-such-package>=2", "other-thing"]
    assert packages.missing(asked) == ("no-such-package>=2", "pydantic>=99", "other-thing")


def test_a_requirement_for_another_platform_is_met():
    assert packages.missing(["no-such-package; sys_platform == 'beos'"]) == ()


def test_the_remedy_can_be_pasted():
    assert packages.how_to_install(["xformers>=0.0.29"]) == "needs xformers>=0.0.29: pip install 'xformers>=0.0.29'"
