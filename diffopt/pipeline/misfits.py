"""Why a network cannot be called with what its pipeline gives it, in words."""

from __future__ import annotations

from typing import Any

import torch

from diffopt.pipeline.weightless import NetworkCall, size_in_words

# Of what is given, the side whose length a config says, and by what keys; a negative one counts from the end.
SIDES: dict[str, tuple[int, tuple[str, ...]]] = {
    "encoder_hidden_states": (
        -1,
        ("encoder_hid_dim", "cross_attention_dim", "joint_attention_dim", "caption_channels", "text_dim")
        + ("text_embed_dim", "cap_feat_dim"),
    ),
    "pooled_projections": (-1, ("pooled_projection_dim",)),
    "sample": (1, ("in_channels",)),
    "hidden_states": (1, ("in_channels",)),
    "z": (1, ("latent_channels", "z_dim")),
    "latents": (1, ("latent_channels", "z_dim")),
}
PACKED = 3  # sides of latents whose pixels stand in a row: channels come last


def network_call_in_words(call: NetworkCall) -> str:
    """The network and the sizes that it was given."""
    method = "" if call.method == "forward" else f", {call.method}"
    tensors = {name: value for name, value in call.arguments.items() if isinstance(value, torch.Tensor)}
    given = ", ".join(f"{name} {size_in_words(value)}" for name, value in tensors.items())
    return f"its {call.component} ({type(call.network).__name__}{method}){f', given {given},' if given else ''}"


def misfit_in_words(call: NetworkCall) -> str | None:
    """What the network's config says otherwise than what it was given; None where they agree as far as is known."""
    config: Any = getattr(call.network, "config", {})
    for name, value in call.arguments.items():
        if name not in SIDES or not isinstance(value, torch.Tensor) or value.ndim < 2:
            continue
        side, keys = SIDES[name]
        found = value.shape[-1 if side == 1 and value.ndim == PACKED else side]
        known = {key: config.get(key) for key in keys if isinstance(config.get(key), int)}
        key = next(iter(known), None)
        if key is not None and known[key] != found:
            return f"its config says {key}={known[key]}, and {name} has {found}"
    return None
