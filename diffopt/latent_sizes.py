"""How many pixels and frames a latent pixel stands for, read from the configs of a VAE and a denoiser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffopt.errors import UsageError
from diffopt.model_index import is_count

MOST_LEVELS = 8  # of a VAE; the deepest in use have 6


def of_vae(vae: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Pixels per latent pixel and frames per latent frame, as diffusers' pipelines compute them; None: not told.

    By name, else from the lists that say which level halves what. Raises UsageError for what cannot be a VAE's.
    """
    for key in ("block_out_channels", "encoder_block_out_channels"):
        levels = vae.get(key, [1])
        if not isinstance(levels, list) or not 1 <= len(levels) <= MOST_LEVELS or not all(map(is_count, levels)):
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


def patch(config: Mapping[str, Any], vae: Mapping[str, Any]) -> int:
    """Latent pixels along a side of what the denoiser takes as one token; some pipelines pack 2x2 of them before."""
    given = config.get("patch_size") or config.get("all_patch_size") or 1
    size = given[-1] if isinstance(given, list) else given
    if not is_count(size) or size > 2**MOST_LEVELS:
        raise UsageError(f"a patch size of {size}")
    latent = vae.get("latent_channels") or vae.get("z_dim") or 0
    packs = 4 * latent in (config.get("in_channels"), config.get("out_channels"))
    return 2 if size == 1 and latent and packs else int(size)


def sample_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Customary height and width in latent pixels. Raises UsageError for what is no size."""
    size = config.get("sample_size")
    if size is None and config.get("sample_height") is not None:
        size = [config["sample_height"], config.get("sample_width")]
    if size is None:
        return None
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(map(is_count, sides)):
        raise UsageError("sample_size must be one number, or [height, width], in latent pixels")
    height, width = sides
    return height, width
