"""How far an option may change what is drawn on the CPU, in pictures from 0 to 1."""

from __future__ import annotations

from typing import NamedTuple

EXACT = 1e-4  # largest difference of what only computes in another order


class Lossy(NamedTuple):
    """Of options that change the numbers."""

    largest: float  # difference on the toy pipeline
    mean: float  # difference on the tiny models


EXACT_OPTIONS = [
    ("layout", "channels_last"),
    ("layout", "channels_last_vae"),
    ("fuse", "qkv"),
    ("attention", "vanilla"),
    ("attention", "sdpa"),
    ("attention", "math"),
    ("attention", "flash"),
]
LOSSY_OPTIONS = {
    ("quant", "int8_dynamic"): Lossy(largest=0.05, mean=0.02),
    ("quant", "int8_dynamic_sdxl"): Lossy(largest=0.05, mean=0.02),
    ("quant", "int8_dynamic_vae"): Lossy(largest=0.05, mean=0.02),
    ("quant", "int8_weight"): Lossy(largest=0.02, mean=0.01),
    ("quant", "int8_weight_text"): Lossy(largest=0.02, mean=0.01),
    ("quant", "fp8_weight"): Lossy(largest=0.05, mean=0.04),
    ("quant", "fp8_storage"): Lossy(largest=0.2, mean=0.08),
}
