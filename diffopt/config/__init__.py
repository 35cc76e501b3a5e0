"""From words to cells: overrides, named sweeps, consent, and what ``ls`` says. The one package that knows Hydra.

Reads YAML as data and executes nothing of it; imports no torch. May import ``recipe`` and what stands below.
"""

from __future__ import annotations

from diffopt.config.composed import Composed
from diffopt.config.composer import Composer
from diffopt.machine.paths import shipped_conf

__all__ = ["Composed", "Composer", "shipped_conf"]
