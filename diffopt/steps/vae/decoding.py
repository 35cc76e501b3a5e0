"""What a VAE's decoder really gets to decode at a time, and the size of its tiles.

A decoder that is compiled together with ``decode`` is watched too: what is noted is the same in every call, so dynamo
repeats it after the graph and need not compile anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffopt.errors import Refusal

if TYPE_CHECKING:
    import torch

_SEEN = "_diffopt_decoding"  # attribute of the VAE


@dataclass
class Decoding:
    """The last call of ``decode``: the latents it was given, and the largest part of them in one call of the decoder.

    Sizes are in latents; ``batch`` is that of a part, ``pictures`` of the whole.
    """

    calls: int = 0
    pictures: int = 0
    height: int = 0
    width: int = 0
    batch: int = 0
    part_height: int = 0
    part_width: int = 0

    @property
    def sliced(self) -> bool:
        return self.batch < self.pictures

    @property
    def tiled(self) -> bool:
        return self.part_height < self.height or self.part_width < self.width

    def numbers(self) -> dict[str, int | float | str]:
        return {
            "decoder_calls": self.calls,
            "pictures": self.pictures,
            "pictures_at_once": self.batch,
            "latent_height": self.height,
            "latent_width": self.width,
            "tile_height": self.part_height,
            "tile_width": self.part_width,
        }


def watch_vae_step(vae: Any) -> None:
    """Note, in each call of ``vae.decode``, what its decoder is given."""
    noted, decode = Decoding(), vae.decode
    setattr(vae, _SEEN, noted)
    # no closures, so that a copied VAE is decoded by its own decoder, and notes it for itself
    vae.decode = functools.update_wrapper(functools.partial(_noting_decode, noted, decode), decode)
    vae.decoder.register_forward_pre_hook(functools.partial(_note_part, noted))


def _noting_decode(noted: Decoding, decode: Callable[..., Any], z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    noted.calls = noted.batch = noted.part_height = noted.part_width = 0
    noted.pictures, noted.height, noted.width = z.shape[0], z.shape[-2], z.shape[-1]
    return decode(z, *args, **kwargs)


def _note_part(noted: Decoding, decoder: Any, args: tuple[Any, ...]) -> None:
    part = args[0]
    noted.calls += 1
    noted.batch = max(noted.batch, part.shape[0])
    noted.part_height = max(noted.part_height, part.shape[-2])
    noted.part_width = max(noted.part_width, part.shape[-1])


def seen_by_vae_step(vae: Any) -> Decoding | None:
    """What was noted at the last call of ``vae.decode``; None where nobody watches."""
    found: Decoding | None = getattr(vae, _SEEN, None)
    return found


def set_vae_tile(vae: Any, tile: int | None, overlap: float | None) -> None:
    """Set the side of a tile in pixels, and the share of it that neighbours overlap; None: as the class has it.

    diffusers has three ways to say so, and rounds pixels and latents apart; where that would give a picture of another
    size, the overlap becomes the nearest one that does not. Raises Refusal for a tile that cannot be.
    """
    if hasattr(vae, "tile_sample_min_size"):  # squares, with a share
        ratio = vae.tile_sample_min_size // vae.tile_latent_min_size
        latents = _latents(vae, tile or vae.tile_sample_min_size, ratio)
        stride = _stride(latents, vae.tile_overlap_factor if overlap is None else overlap, ratio)
        vae.tile_sample_min_size, vae.tile_latent_min_size = latents * ratio, latents
        vae.tile_overlap_factor = (latents - stride) / latents
        return
    sides = {}
    for side in ("height", "width"):
        pixels = getattr(vae, f"tile_sample_min_{side}")
        if hasattr(vae, f"tile_sample_stride_{side}"):  # a stride in pixels
            ratio = vae.spatial_compression_ratio
            usual = 1 - getattr(vae, f"tile_sample_stride_{side}") / pixels
            latents = _latents(vae, tile or pixels, ratio)
            stride = _stride(latents, usual if overlap is None else overlap, ratio)
            sides[f"tile_sample_stride_{side}"] = stride * ratio
        else:  # a share for each side
            ratio = pixels // getattr(vae, f"tile_latent_min_{side}")
            usual = getattr(vae, f"tile_overlap_factor_{side}")
            latents = _latents(vae, tile or pixels, ratio)
            stride = _stride(latents, usual if overlap is None else overlap, ratio)
            sides[f"tile_overlap_factor_{side}"] = (latents - stride) / latents
        sides[f"tile_sample_min_{side}"] = latents * ratio
    vae.enable_tiling(**sides)
    for name, value in sides.items():  # which takes a share of 0 for none given
        setattr(vae, name, value)


def _latents(vae: Any, tile: int, ratio: int) -> int:
    if tile % ratio or tile < 2 * ratio:
        raise Refusal(f"vae.tile={tile}: {type(vae).__name__} needs a multiple of {ratio}, of {2 * ratio} or more")
    return tile // ratio


def _stride(latents: int, overlap: float, ratio: int) -> int:
    """From one tile to the next, in latents: near ``1 - overlap`` of the tile, and exact in diffusers' arithmetic."""
    strides = [stride for stride in range(1, latents + 1) if _is_exact(latents, stride, ratio)]
    overlapping = [stride for stride in strides if stride < latents or not overlap]
    return min(overlapping or strides, key=lambda stride: abs(latents - stride - overlap * latents))


def _is_exact(latents: int, stride: int, ratio: int) -> bool:
    share = (latents - stride) / latents
    return int(latents * (1 - share)) == stride and int(latents * ratio * share) == (latents - stride) * ratio
