"""The one part of diffopt that knows Hydra."""

from diffopt.compose.composer import Composed, Composer
from diffopt.shipped import shipped_conf

__all__ = ["Composed", "Composer", "shipped_conf"]
