"""Quantized weights through torchao: one class per scheme. Which Linears, and the proof, are in ``linears.py``.

``set_inductor_config=False`` throughout: torchao otherwise changes inductor's global settings behind the back of the
compile group. ``skip_shapes`` came later than the other fields: its default keeps the ids of older recipes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from diffopt.models import classes
from diffopt.schema.step import Effect, Order, Requirements, Site, Step, Trait, register
from diffopt.steps.components import Components, missing
from diffopt.steps.quant.linears import Shapes, Words, proof, quantize
from diffopt.steps.quant.values import SMALLEST_LARGEST

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

MinFeatures = Annotated[int, Field(ge=16)]
_CUDA = frozenset({"cuda"})


def unquantizable_weights(site: Site, components: Components) -> tuple[str, ...]:
    """Reasons where a component that is named is not there, or certainly has nothing for torchao to quantize."""
    lacking = missing(site, components, "quant.components")
    if (
        "vae" not in components
        or classes.vae_class_record(classes.denoiser_class_record(site.model.denoiser_class).vae).linears is not False
    ):
        return lacking
    others = ", ".join(word for word in components if word != "vae") or "denoiser"
    reason = f"quant.components=vae: the VAE of {site.model.name} has no Linear; write quant.components=[{others}]"
    return (*lacking, reason)


@register("quant")
class Int8Dynamic(Step):
    """int8 weights per output channel, int8 activations per token with scales computed at run time; int8 products."""

    order: ClassVar[Order] = Order.QUANTIZE
    kind: Literal["int8_dynamic"]
    components: Components
    min_features: MinFeatures
    skip: Words
    skip_shapes: Shapes = ()

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({Trait.QUANTIZES})

    def requires(self) -> Requirements:
        return Requirements(
            compute_capability=(8, 0), packages=("torchao>=0.18",), evidence="https://github.com/pytorch/ao#inference"
        )

    def problems(self, site: Site) -> tuple[str, ...]:
        return unquantizable_weights(site, self.components)

    def weight_bytes(self, part: str, site: Site) -> float | None:
        return 1 if part in self.components else None

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        import torch
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig
        from torchao.utils import should_reduce_range

        # a CPU without VNNI adds pairs of int8 products in int16, which overflows at the full range
        narrow = should_reduce_range(torch.device(site.hardware.device))
        config = Int8DynamicActivationInt8WeightConfig(reduce_range=narrow, set_inductor_config=False)
        quantize(self, pipe, site, config)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        from torchao.quantization import Int8Tensor

        return proof(self, pipe, site, lambda w: isinstance(w, Int8Tensor) and w.act_quant_kwargs is not None)


@register("quant")
class Int8Weight(Step):
    """int8 weights per output channel, widened to the computing precision in each call."""

    order: ClassVar[Order] = Order.QUANTIZE
    kind: Literal["int8_weight"]
    components: Components
    min_features: MinFeatures
    skip: Words
    skip_shapes: Shapes = ()

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({Trait.QUANTIZES})

    def requires(self) -> Requirements:
        return Requirements(packages=("torchao>=0.18",), evidence="https://github.com/pytorch/ao#inference")

    def problems(self, site: Site) -> tuple[str, ...]:
        return unquantizable_weights(site, self.components)

    def weight_bytes(self, part: str, site: Site) -> float | None:
        return 1 if part in self.components else None

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        from torchao.quantization import Int8WeightOnlyConfig

        quantize(self, pipe, site, Int8WeightOnlyConfig(set_inductor_config=False))

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        from torchao.quantization import Int8Tensor

        return proof(self, pipe, site, lambda w: isinstance(w, Int8Tensor) and w.act_quant_kwargs is None)


@register("quant")
class Int4Weight(Step):
    """int4 weights in groups of ``group_size`` inputs, packed for the tinygemm kernel, which computes in bfloat16."""

    order: ClassVar[Order] = Order.QUANTIZE
    kind: Literal["int4_weight"]
    components: Components
    min_features: MinFeatures
    skip: Words
    group_size: Literal[32, 64, 128, 256]
    skip_shapes: Shapes = ()

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({Trait.QUANTIZES, Trait.PACKS_ON_DEVICE})

    def requires(self) -> Requirements:
        return Requirements(
            devices=_CUDA,
            compute_capability=(8, 0),
            packages=("torchao>=0.18",),
            dtypes=frozenset({"bfloat16"}),
            evidence="torchao 0.18, int4_tile_packed_to_4d_tensor.py",
        )

    def problems(self, site: Site) -> tuple[str, ...]:
        return unquantizable_weights(site, self.components)

    def weight_bytes(self, part: str, site: Site) -> float | None:
        if part not in self.components:
            return None
        # text encoders and VAE: nearly all weights are in Linears that need no padding, or in none
        known = classes.denoiser_class_record(site.model.denoiser_class).int4_padded if part == "denoiser" else 1
        group = 4 / self.group_size  # a scale and a zero in bfloat16
        return known * (0.5 + group)

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        from torchao.quantization import Int4WeightOnlyConfig
        from torchao.quantization.quantize_.workflows.int4.int4_packing_format import Int4PackingFormat

        # the default packing needs another package (mslk)
        config = Int4WeightOnlyConfig(
            group_size=self.group_size,
            int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D,
            set_inductor_config=False,
        )
        quantize(self, pipe, site, config, multiple=self.group_size)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        from torchao.quantization import Int4TilePackedTo4dTensor

        return proof(self, pipe, site, lambda w: isinstance(w, Int4TilePackedTo4dTensor), multiple=self.group_size)


@register("quant")
class Float8Dynamic(Step):
    """float8 (e4m3) weights and activations, scales computed at run time; float8 products."""

    order: ClassVar[Order] = Order.QUANTIZE
    kind: Literal["fp8_dynamic"]
    components: Components
    min_features: MinFeatures
    skip: Words
    granularity: Literal["tensor", "row"]
    skip_shapes: Shapes = ()

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({Trait.QUANTIZES, Trait.FLOAT8})

    def requires(self) -> Requirements:
        return Requirements(
            devices=_CUDA,
            compute_capability=(8, 9),
            packages=("torchao>=0.18",),
            dtypes=frozenset({"bfloat16"}) if self.granularity == "row" else None,
            evidence="torchao 0.18, quant_api.py: float8 dynamic needs CUDA >= 8.9, per row also bfloat16 weights",
        )

    def problems(self, site: Site) -> tuple[str, ...]:
        return unquantizable_weights(site, self.components)

    def weight_bytes(self, part: str, site: Site) -> float | None:
        return 1 if part in self.components else None

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, PerTensor

        granularity = PerRow() if self.granularity == "row" else PerTensor()
        config = Float8DynamicActivationFloat8WeightConfig(
            granularity=granularity, activation_value_lb=SMALLEST_LARGEST, set_inductor_config=False
        )
        quantize(self, pipe, site, config)

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        from torchao.quantization import Float8Tensor, PerRow, PerTensor

        granularity = PerRow if self.granularity == "row" else PerTensor

        def is_meant(weight: Any) -> bool:
            kwargs = weight.act_quant_kwargs if isinstance(weight, Float8Tensor) else None
            return isinstance(getattr(kwargs, "granularity", None), granularity)

        return proof(self, pipe, site, is_meant)


@register("quant")
class Float8Weight(Step):
    """float8 (e4m3) weights per output channel, widened to the computing precision in each call."""

    order: ClassVar[Order] = Order.QUANTIZE
    kind: Literal["fp8_weight"]
    components: Components
    min_features: MinFeatures
    skip: Words
    skip_shapes: Shapes = ()

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({Trait.QUANTIZES, Trait.FLOAT8})

    def requires(self) -> Requirements:
        return Requirements(packages=("torchao>=0.18",), evidence="https://github.com/pytorch/ao#inference")

    def problems(self, site: Site) -> tuple[str, ...]:
        return unquantizable_weights(site, self.components)

    def weight_bytes(self, part: str, site: Site) -> float | None:
        return 1 if part in self.components else None

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        from torchao.quantization import Float8WeightOnlyConfig

        quantize(self, pipe, site, Float8WeightOnlyConfig(set_inductor_config=False))

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        from torchao.quantization import Float8Tensor

        return proof(self, pipe, site, lambda w: isinstance(w, Float8Tensor) and w.act_quant_kwargs is None)
