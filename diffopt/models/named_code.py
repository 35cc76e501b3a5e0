"""Values in a model's configs by which the libraries would fetch code and run it. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffopt.errors import UsageError
from diffopt.schema.words import value_in_words

# transformers' own names; it takes any other one for a repository of kernels, and flash attention that is not installed
# for one that it knows
ATTENTION = frozenset({"eager", "sdpa", "flex_attention"})


def check_config_names_no_kernel(path: Path, config: Any) -> None:
    """Raises UsageError where a component's config chooses attention that transformers would fetch from the hub."""
    for key, value in _chosen_attention(config):
        if value is not None and value not in ATTENTION:
            raise UsageError(
                f"{path} names {key}={value_in_words(value)}: code that transformers would download from the hub and "
                f"run. Nothing of it was used; take the line out of the file."
            )


def _chosen_attention(config: Any) -> Iterator[tuple[str, Any]]:
    """Each choice in a config and in those of its parts; a mapping has one for each part."""
    if isinstance(config, list):
        for inner in config:
            yield from _chosen_attention(inner)
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if key.removeprefix("_").removesuffix("_internal") == "attn_implementation":
            yield from ((key, one) for one in (value.values() if isinstance(value, dict) else [value]))
        else:
            yield from _chosen_attention(value)
