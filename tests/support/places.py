"""Where things lie in a checkout."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
REPO = TESTS.parent
CONF = REPO / "conf"
FAULTY_STEPS = TESTS / "support" / "faulty_steps"  # a distribution whose steps go wrong, each in its own way
