"""What is customary with ``model.weights=tiny``: the same family at about a million parameters, with random weights.

The configs are in the folder ``tiny`` of the architecture's own, and beside them ``tiny.yaml`` with what differs from
the option: size, steps, and what the small parts take. What is not known of the small model is null.
"""

from __future__ import annotations

from typing import Any

from diffopt.machine import plain_yaml
from diffopt.models.resolve import PACKAGED, TINY, packaged_architecture

# Of the full size. Null is what the configs tell, or nobody has counted.
TOLD_ANEW: dict[str, Any] = {
    "head_sizes": None,
    "vae_head_size": None,
    "parameters": {"denoiser": None, "text_encoders": None, "vae": None},
    "activations": None,
    "dtype": "float32",  # nothing is gained by less, and any machine computes in it
}


def has_tiny(architecture: str | None) -> bool:
    """Whether there are tiny configs of an architecture."""
    return architecture is not None and (PACKAGED / architecture / TINY).is_dir()


def with_tiny_model_values(data: dict[str, Any], typed: frozenset[str]) -> dict[str, Any]:
    """The composed ``model`` group with what is customary of its tiny configs, where they are asked for.

    A key that is typed on the command line keeps its value. A model with its ``content`` was resolved before, as one
    in a recipe file is, and stays as it is; so does one without an architecture, which is refused when resolved.

    Raises:
        UsageError: the architecture has no tiny configs.
    """
    architecture = data.get("architecture")
    if data.get("weights") != "tiny" or data.get("content") is not None or not isinstance(architecture, str):
        return data
    values, _ = plain_yaml.read_plain_yaml(packaged_architecture(architecture, tiny=True) / "tiny.yaml")
    return _merged(data, TOLD_ANEW | values, typed, "model")


def _merged(data: dict[str, Any], values: dict[str, Any], typed: frozenset[str], prefix: str) -> dict[str, Any]:
    """``data`` with ``values``, also nested ones, but for the typed keys and what is below them."""
    found = dict(data)
    for key, value in values.items():
        name = f"{prefix}.{key}"
        if name in typed:
            continue
        inner = found.get(key)
        found[key] = _merged(inner or {}, value, typed, name) if isinstance(value, dict) else value
    return found
