"""The one part of diffopt that knows Hydra."""

from __future__ import annotations

from diffopt.config.composer import Composed, Composer
from diffopt.machine.paths import shipped_conf

__all__ = ["Composed", "Composer", "shipped_conf"]
