"""Channels per attention head, read from the configs of components. Attention kernels have limits on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffopt.errors import UsageError
from diffopt.models import classes
from diffopt.models.index import is_size_in_model_config

# Blocks of the UNet by what they do with attention_head_dim.
PLAIN = frozenset({"DownBlock2D", "UpBlock2D", "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"})  # no attention
NUMBER = frozenset({"CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn"})  # it is how many heads
SIZE = frozenset(  # it is the size of a head, as its name says
    {"SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D", "UNetMidBlock2DSimpleCrossAttn"}
    | {"AttnDownBlock2D", "AttnUpBlock2D"}
)
WIDTHS = ("hidden_size", "dim", "inner_dim", "emb_dim", "width")  # names of transformers' channels, where there is
HEADS = ("num_attention_heads", "n_heads", "num_heads")  # no attention_head_dim


def head_sizes_of_denoiser(class_name: str, config: dict[str, Any]) -> list[int] | None:
    """Ascending, each once; None where they cannot be told.

    Most blocks of a UNet take ``attention_head_dim`` for the number of heads: a mistake of its first version that
    diffusers keeps.
    """
    heads_by = classes.denoiser_class_record(class_name).heads
    if heads_by == "by_block":
        return _of_unet(config)
    if heads_by is None:
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


def head_size_of_vae(class_name: str, config: dict[str, Any]) -> int | None:
    """The width of the middle, where most VAEs attend with one head; None where this one does not, or is unknown."""
    head = classes.vae_class_record(class_name).head
    if head == "last_multiple":
        return int(config.get("base_dim", 96) * config.get("dim_mult", [4])[-1])
    attends = head == "last_level" and config.get("mid_block_add_attention", True)
    return int(config["block_out_channels"][-1]) if attends else None


MOST_LEVELS = 8  # of a VAE; the deepest in use have 6


def latent_factors_of_vae(vae: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Pixels per latent pixel and frames per latent frame, as diffusers' pipelines compute them; None: not told.

    By name, else from the lists that say which level halves what. Raises UsageError for what cannot be a VAE's.
    """
    for key in ("block_out_channels", "encoder_block_out_channels"):
        levels = vae.get(key, [1])
        if (
            not isinstance(levels, list)
            or not 1 <= len(levels) <= MOST_LEVELS
            or not all(map(is_size_in_model_config, levels))
        ):
            raise UsageError(f"{key} must be a list of channels, one number for each level of the VAE")
    factors = _factors(vae)
    if any(factor is not None and not 1 <= factor <= 2**MOST_LEVELS for factor in factors):
        raise UsageError(f"a factor of {factors[0]} in space and {factors[1]} in time")
    return factors


def _factors(vae: Mapping[str, Any]) -> tuple[int | None, int | None]:
    spatial = vae.get("scale_factor_spatial") or vae.get("spatial_compression_ratio")
    temporal = vae.get("scale_factor_temporal") or vae.get("temporal_compression_ratio")
    if "temperal_downsample" in vae:  # Wan's and Qwen's, in diffusers' spelling
        halved: list[bool] = vae["temperal_downsample"]
        return spatial or 2 ** len(halved), temporal or 2 ** sum(halved)
    if "spatio_temporal_scaling" in vae:  # LTX's
        scaled = 2 ** sum(vae["spatio_temporal_scaling"])
        return spatial or vae["patch_size"] * scaled, temporal or vae["patch_size_t"] * scaled
    if "spatial_expansions" in vae:  # Mochi's
        return spatial or math.prod(vae["spatial_expansions"]), temporal or math.prod(vae["temporal_expansions"])
    levels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels")
    return spatial or (2 ** (len(levels) - 1) if levels else None), temporal


def patch_size_of_denoiser(config: Mapping[str, Any], vae: Mapping[str, Any]) -> int:
    """Latent pixels along a side of what the denoiser takes as one token; some pipelines pack 2x2 of them before."""
    given = config.get("patch_size") or config.get("all_patch_size") or 1
    size = given[-1] if isinstance(given, list) else given
    if not is_size_in_model_config(size) or size > 2**MOST_LEVELS:
        raise UsageError(f"a patch size of {size}")
    latent = vae.get("latent_channels") or vae.get("z_dim") or 0
    packs = 4 * latent in (config.get("in_channels"), config.get("out_channels"))
    return 2 if size == 1 and latent and packs else int(size)


def model_sample_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Customary height and width in latent pixels. Raises UsageError for what is no size."""
    size = config.get("sample_size")
    if size is None and config.get("sample_height") is not None:
        size = [config["sample_height"], config.get("sample_width")]
    if size is None:
        return None
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(map(is_size_in_model_config, sides)):
        raise UsageError("sample_size must be one number, or [height, width], in latent pixels")
    height, width = sides
    return height, width


def largest_size_of_model_class(class_name: str, config: Mapping[str, Any], patch: int) -> dict[str, Any] | None:
    """Height and width in latent pixels that its table of positions has places for, and whether others fit too.

    None where any size does, or where it is not known. Raises UsageError for what is no length of a table.
    """
    positions = classes.denoiser_class_record(class_name).positions
    if positions is None:
        return None
    counted, told = positions
    found: Any = config.get(told) if isinstance(told, str) else told
    sides = [config.get("sample_height"), config.get("sample_width")]
    if found is None or (counted == "learned" and (not found or None in sides)):
        return None
    if counted == "learned":
        return _largest_side(sides, exact=True)
    if counted == "axes":
        return _largest_side([side * patch for side in found[-2:]], exact=False)
    if not is_size_in_model_config(found):
        raise UsageError(f"{told} must be a positive number")
    return _largest_side([patch * (math.isqrt(found) if counted == "area" else found)] * 2, exact=False)


def _largest_side(sides: list[Any], *, exact: bool) -> dict[str, Any]:
    if len(sides) != 2 or not all(map(is_size_in_model_config, sides)):
        raise UsageError("the lengths of its tables of positions must be positive numbers")
    return {"height": sides[0], "width": sides[1], "exact": exact}
