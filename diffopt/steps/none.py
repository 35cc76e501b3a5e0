"""The option of a group that leaves the pipeline as diffusers made it."""

from __future__ import annotations

from typing import ClassVar, Literal

from diffopt.schema.step import Order, Step, register


@register("lora", "fuse", "quant", "attention", "layout", "vae", "scheduler", "compile", "cache")
class Nothing(Step):
    """Do nothing. A plan leaves it out, so it is never applied nor verified."""

    order: ClassVar[Order] = Order.LOAD
    kind: Literal["none"]
