"""What a sampler must take over from the config of the model's own."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

TRAIN_TIMESTEPS = 1000  # of the noise schedule that nearly every published model of diffusion was trained with
# Keys of a scheduler's config that change the noise schedule or the meaning of the denoiser's output, and the values
# at which they change nothing, as null does not. A class without the argument would drop them without a word.
ESSENTIAL: dict[str, tuple[Any, ...]] = {
    "invert_sigmas": (False,),
    "rescale_betas_zero_snr": (False,),
    "shift_terminal": (0,),
    "snr_shift_scale": (1.0,),
    "trained_betas": (),
    "use_dynamic_shifting": (False,),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}


def sampler_needs_of_model(config: Mapping[str, Any]) -> tuple[str, ...]:
    """``key=value`` of what another sampler must take over from the config of the model's own."""
    return tuple(
        f"{key}={config[key]}" for key, neutral in ESSENTIAL.items() if config.get(key) not in (None, *neutral)
    )


def dropped_sampler_needs_of_model(needed: Iterable[str], arguments: Container[str]) -> list[str]:
    """Of :func:`sampler_needs_of_model`, what a class with these constructor arguments would drop."""
    return [need for need in needed if need.partition("=")[0] not in arguments]
