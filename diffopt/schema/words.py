"""Words: the near miss of a misspelled one, values as text, an error in one line."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from unicodedata import category


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """``" Did you mean x?"``, or nothing when no choice is near (``4090`` is near ``rtx4090``)."""
    options = list(choices)
    low = word.lower()
    near = difflib.get_close_matches(low, options, n=1, cutoff=0.6) or [c for c in options if low and low in c][:1]
    return f" Did you mean {near[0]}?" if near else ""


# options of the precision group, by torch's names
PRECISION_OF_DTYPE = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
PLAIN = re.compile(r"(/|\./|\.\./)?[A-Za-z_][A-Za-z0-9_./-]*")  # texts that Hydra's grammar takes without quotes
WORDS = {"true", "false", "null", "nan", "inf"}  # which Hydra does not take for texts


def hydra_literal(value: str | int | float | bool) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, str):
        plain = PLAIN.fullmatch(value) and value.lower() not in WORDS
        return value if plain else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def shell_word(key: str, value: str | int | float | bool) -> str:
    """``KEY=VALUE`` as a shell takes it."""
    return shlex.quote(f"{key}={hydra_literal(value)}")


def escape_controls(text: str) -> str:
    """The text with the escapes of its line ends and of what else would steer a terminal: ``a\\nb``."""
    return "".join(repr(sign)[1:-1] if category(sign) == "Cc" else sign for sign in text)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def flatten_to_dotted_keys(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``(dotted key, value)`` of nested data; the keys of a recipe stand at the top, as on the command line."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten_to_dotted_keys(value, "" if name == "recipe" else f"{name}.")
        else:
            yield name, value


def value_in_words(value: Any) -> str:
    """A value as one would write it on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(value_in_words, value))}]"
    return str(value)
