"""YAML as data and nothing else: mappings, lists, texts, numbers, true, false and null.

Aliases are refused (they can blow a small file up to any size, or make it contain itself), and so are tags that make
anything else, duplicate keys, and texts that are not UTF-8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

from diffopt.errors import UsageError
from diffopt.machine.reading import MIB, read_file

LONGEST = 8 * MIB  # of a file; a recipe has some KiB
PLAIN = (str, int, float, bool, type(None))


class _Loader(get_yaml_loader()):  # type: ignore[misc]
    """OmegaConf's loader, with libyaml as its scanner, which is many times as fast as the one in Python.

    What the scanned events become is made in Python still, so that every check stays and deep nesting is an error.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        if yaml.__with_libyaml__:  # PyYAML's wheels have it
            from yaml._yaml import CParser

            events = CParser(text)
            for call in ("check_event", "peek_event", "get_event"):
                setattr(self, call, getattr(events, call))

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        line = event.start_mark.line + 1
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {line}: write the value out, not an alias (*)")
        if event.tag == "!":  # it makes a text of nothing with libyaml, null with the scanner in Python
            raise yaml.YAMLError(f"line {line}: write the value without a tag (!)")
        return super().compose_node(parent, index)


def read_plain_yaml(path: Path) -> tuple[dict[str, Any], str]:
    """The content of a YAML file and its text. Raises UsageError when it is not a mapping of plain data."""
    try:
        text = read_file(path, str(path), LONGEST).decode("utf-8-sig").replace("\r\n", "\n")
        data = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"{path} is not YAML of plain data: {' '.join(str(error).split())}.") from error
    except RecursionError:
        raise UsageError(f"{path} is not YAML of plain data: it is nested too deeply.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise UsageError(f"{path} must be a mapping of keys to values, but is a {type(data).__name__}.")
    _check_plain(data, path)
    return data, text


def _check_plain(value: Any, path: Path, where: str = "") -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise UsageError(f"{path}: the key {key!r} is not a text; quote it.")
            _check_plain(inner, path, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_plain(inner, path, f"{where}[{index}]")
    elif not isinstance(value, PLAIN):
        raise UsageError(
            f"{path}: '{where}' is a {type(value).__name__}; only texts, numbers, true, false and null are."
        )
