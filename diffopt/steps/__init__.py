"""The optimizations: one class for each kind of option, a folder for each group that needs more than a file.

May import ``models`` and what stands below; torch and diffusers inside functions, or in modules that only those import.
Few groups know another. All are imported here explicitly, so that a broken module fails loudly.

An installed package that declares an entry point in the group ``diffopt.steps`` has that object imported here, which
runs its :func:`diffopt.schema.step.register` decorators; its YAML options go into the user's own ``conf/``. One that
fails is left out, see ``diffopt.steps.plugins``.
"""

import diffopt.steps.attention.backends
import diffopt.steps.cache.attention
import diffopt.steps.cache.blocks
import diffopt.steps.compile.ahead
import diffopt.steps.compile.regions
import diffopt.steps.compile.whole
import diffopt.steps.fuse
import diffopt.steps.layout
import diffopt.steps.lora.adapters
import diffopt.steps.memory.placement
import diffopt.steps.none
import diffopt.steps.precision
import diffopt.steps.quant.casting
import diffopt.steps.quant.torchao
import diffopt.steps.scheduler.sampler
import diffopt.steps.vae.split  # noqa: F401
from diffopt.steps import plugins

plugins.load_plugins()
