"""Channels per attention head, read from the configs of components. Attention kernels have limits on them."""

from __future__ import annotations

from typing import Any

# Blocks of the UNet by what they do with attention_head_dim.
PLAIN = frozenset({"DownBlock2D", "UpBlock2D", "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"})  # no attention
NUMBER = frozenset({"CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn"})  # it is how many heads
SIZE = frozenset(  # it is the size of a head, as its name says
    {"SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D", "UNetMidBlock2DSimpleCrossAttn"}
    | {"AttnDownBlock2D", "AttnUpBlock2D"}
)
WIDTHS = ("hidden_size", "dim", "inner_dim", "emb_dim", "width")  # names of transformers' channels, where there is
HEADS = ("num_attention_heads", "n_heads", "num_heads")  # no attention_head_dim
ONE_HEAD = frozenset({"AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderKLHunyuanVideo", "VQModel"})
ONE_WIDE_HEAD = frozenset({"AutoencoderKLWan", "AutoencoderKLQwenImage"})  # whose levels are multiples of one width


def of_denoiser(class_name: str, config: dict[str, Any]) -> list[int] | None:
    """Ascending, each once; None where they cannot be told.

    Most blocks of a UNet take ``attention_head_dim`` for the number of heads: a mistake of its first version that
    diffusers keeps.
    """
    if class_name == "UNet2DConditionModel":
        return _of_unet(config)
    if class_name.startswith("UNet"):
        return None
    # where the two differ, as in Sana, self-attention is linear and has no kernels
    size = config.get("cross_attention_head_dim") or config.get("attention_head_dim")
    if size is not None:
        return [size]
    width = next((config[name] for name in WIDTHS if name in config), None)
    heads = next((config[name] for name in HEADS if name in config), None)
    return None if width is None or heads is None else [width // heads]


def _of_unet(config: dict[str, Any]) -> list[int] | None:
    channels: list[int] = config["block_out_channels"]
    numbers = _each(config.get("num_attention_heads") or config.get("attention_head_dim", 8), channels)
    given = _each(config.get("attention_head_dim", 8), channels)
    down, up = config["down_block_types"], config["up_block_types"]
    middle = config.get("mid_block_type", "UNetMidBlock2DCrossAttn") or "DownBlock2D"
    places = list(range(len(channels)))
    blocks = [*zip(down, places, strict=True), *zip(up, reversed(places), strict=True), (middle, places[-1])]
    sizes: set[int] = set()
    for block, place in blocks:
        if block in NUMBER:
            sizes.add(channels[place] // numbers[place])
        elif block in SIZE:
            sizes.add(given[place])
        elif block not in PLAIN:
            return None
    return sorted(sizes)


def _each(value: Any, levels: list[int]) -> list[int]:
    return [value] * len(levels) if isinstance(value, int) else list(value)


def of_vae(class_name: str, config: dict[str, Any]) -> int | None:
    """The width of the middle, where most VAEs attend with one head; None where this one does not, or is unknown."""
    if class_name in ONE_WIDE_HEAD:
        return int(config.get("base_dim", 96) * config.get("dim_mult", [4])[-1])
    attends = class_name in ONE_HEAD and config.get("mid_block_add_attention", True)
    return int(config["block_out_channels"][-1]) if attends else None
