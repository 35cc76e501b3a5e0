"""How a value is typed on the command line."""

from __future__ import annotations

import json
import re
import shlex

PLAIN = re.compile(r"(/|\./|\.\./)?[A-Za-z_][A-Za-z0-9_./-]*")  # texts that Hydra's grammar takes without quotes
WORDS = {"true", "false", "null", "nan", "inf"}  # which Hydra does not take for texts


def literal(value: str | int | float | bool) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, str):
        plain = PLAIN.fullmatch(value) and value.lower() not in WORDS
        return value if plain else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def word(key: str, value: str | int | float | bool) -> str:
    """``KEY=VALUE`` as a shell takes it."""
    return shlex.quote(f"{key}={literal(value)}")
