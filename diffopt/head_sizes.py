"""Channels per attention head, read from the configs of components. Attention kernels have limits on them."""

from __future__ import annotations

from typing import Any

BLOCKS = frozenset({"DownBlock2D", "UpBlock2D", "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"})


def of_denoiser(class_name: str, config: dict[str, Any]) -> list[int] | None:
    """Ascending, each once; None where its blocks are unknown here.

    A UNet's ``attention_head_dim`` is the number of heads: a mistake of its first version that diffusers keeps.
    """
    if class_name != "UNet2DConditionModel":
        size = config.get("attention_head_dim")
        return None if size is None else [size]
    channels: list[int] = config["block_out_channels"]
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    counts = [heads] * len(channels) if isinstance(heads, int) else heads
    sizes = [width // count for width, count in zip(channels, counts, strict=True)]
    down, up = config["down_block_types"], config["up_block_types"]
    if not BLOCKS.issuperset({*down, *up}):
        return None
    levels = [*zip(down, sizes, strict=True), *zip(up, reversed(sizes), strict=True)]
    levels.append((config.get("mid_block_type", "UNetMidBlock2DCrossAttn") or "", sizes[-1]))
    return sorted({size for block, size in levels if "CrossAttn" in block})


def of_vae(config: dict[str, Any]) -> int | None:
    """The width of the middle, where Stable Diffusion's VAE attends with one head; None where it does not."""
    attends = config.get("mid_block_add_attention", True)
    return int(config["block_out_channels"][-1]) if attends else None
