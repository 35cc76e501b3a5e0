"""diffusers' classes of VAEs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Vae:
    """What a VAE's class is to the steps."""

    # What its middle attends with: one head as wide as its last level of channels, or, where levels are multiples of
    # one width, as that times the last of them; None: no attention, or not known.
    head: Literal["last_level", "last_multiple"] | None
    fuses: bool | None  # has projections that can be fused; None: not known
    linears: bool | None  # has Linears to quantize; None: its config decides, or not known
    float32: bool  # diffusers' own examples load it so: it loses detail below


UNKNOWN_VAE = Vae(head=None, fuses=None, linears=None, float32=False)
_ATTENDS = Vae(head="last_level", fuses=True, linears=True, float32=False)
VAES: Mapping[str, Vae] = MappingProxyType(
    {
        "AutoencoderDC": Vae(head=None, fuses=False, linears=True, float32=False),
        "AutoencoderKL": _ATTENDS,
        "AutoencoderKLCogVideoX": Vae(head=None, fuses=False, linears=False, float32=False),
        "AutoencoderKLFlux2": _ATTENDS,
        "AutoencoderKLHunyuanVideo": _ATTENDS,
        "AutoencoderKLLTXVideo": Vae(head=None, fuses=False, linears=None, float32=False),
        "AutoencoderKLQwenImage": Vae(head="last_multiple", fuses=False, linears=False, float32=False),
        "AutoencoderKLWan": Vae(head="last_multiple", fuses=False, linears=False, float32=True),
        "VQModel": _ATTENDS,
    }
)
