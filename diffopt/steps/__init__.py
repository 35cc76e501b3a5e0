"""All steps. Imported explicitly, so that a broken module fails loudly; other packages add theirs by entry point.

An installed package that declares an entry point in the group ``diffopt.steps`` has that object imported here, which
runs its :func:`diffopt.step.register` decorators; its YAML options go into the user's own ``conf/``.
"""

from importlib.metadata import entry_points

from diffopt.steps import (
    aot,
    attention,
    cache,
    cache_attention,
    casting,
    compile,
    fuse,
    layout,
    lora,
    memory,
    none,
    precision,
    quant,
    regions,
    scheduler,
    vae,
)

for _entry in entry_points(group="diffopt.steps"):
    _entry.load()

__all__ = [
    "aot",
    "attention",
    "cache",
    "cache_attention",
    "casting",
    "compile",
    "fuse",
    "layout",
    "lora",
    "memory",
    "none",
    "precision",
    "quant",
    "regions",
    "scheduler",
    "vae",
]
