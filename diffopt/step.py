"""The one base class of all optimizations, and the words that steps and rules share.

A *step* is one chosen option of a config group as an object: its fields are the settings in the option's YAML,
``apply`` is its effect on a pipeline, ``verify`` the proof of that effect. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from diffopt.recipe import Hardware, Model
    from diffopt.workload import Workload


class Frozen(BaseModel):
    """A record read from YAML: immutable, hashable, no unknown keys, no silent conversions (``true`` is not 1)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Order(IntEnum):
    """The one order in which steps touch a pipeline; read top to bottom."""

    LOAD = auto()  # arguments of from_pretrained: dtype, safetensors only
    PLACE = auto()  # resident .to(device); int4 packing and on-device random weights need it first
    ADAPT = auto()  # LoRA: fused before QKV fusion, which would drop a live one on q, k, v
    FUSE = auto()  # QKV fusion concatenates weights, so they must still be plain
    QUANTIZE = auto()  # rewrites weights in place
    CAST = auto()  # layerwise casting (fp8 storage); before fuse or quantize it raises
    ATTENTION = auto()  # our processor uses to_qkv/to_kv of fused modules; a stock one silently undoes the fusion
    LAYOUT = auto()  # channels_last, VAE slicing and tiling
    SCHEDULE = auto()  # sampler, sigmas on the CPU, begin index set
    OFFLOAD = auto()  # hooks come before compile
    COMPILE = auto()  # captures everything above
    CACHE = auto()  # block caches wrap compiled forwards; inside a graph they break it


class Trait(Enum):
    """What a step does that another step may not bear; conflicts in rules.py join traits, never names."""

    COMPILES = auto()  # torch.compile is part of it
    CUDA_GRAPHS = auto()  # records CUDA graphs, which replay fixed addresses (never on the CPU)
    FULLGRAPH = auto()  # promises that nothing breaks the graph
    GRAPH_BREAKS = auto()  # breaks the graph
    MOVES_WEIGHTS = auto()  # weights move between host and device while the pipeline runs
    STOCK_PROCESSOR = auto()  # installs diffusers' own attention processor, which ignores fused projections
    FUSES_QKV = auto()  # q, k, v become one matrix
    QUANTIZES = auto()  # Linear weights become 8 or 4 bit
    FLOAT8 = auto()  # weights are float8 (e4m3)
    LIVE_LORA = auto()  # LoRA layers stay separate
    CASTS_STORAGE = auto()  # weights are stored narrow and widened for each call
    HALF_PRECISION_BF16 = auto()  # computes in bfloat16
    HALF_PRECISION_FP16 = auto()  # computes in float16
    FULL_PRECISION = auto()  # computes in float32


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What a step needs; plan checks the device, run checks the packages, ls shows both."""

    devices: frozenset[str] = frozenset({"cuda", "cpu"})
    compute_capability: tuple[int, int] | None = None  # at least this, on CUDA
    exact_compute_capabilities: frozenset[tuple[int, int]] | None = None  # one of these, on CUDA (FlashAttention 3)
    packages: tuple[str, ...] = ()  # PEP 508, such as "xformers>=0.0.29"
    dtypes: frozenset[str] | None = None  # "float16", "bfloat16", "float32": what works on CUDA; None: all
    evidence: str = ""  # link or file that shows it


@dataclass(frozen=True)
class Site:
    """What a step may read while it works. Never a sibling step."""

    model: Model
    hardware: Hardware
    workload: Workload | None  # None when a pipeline is optimized without a workload (diffopt.optimize)


@dataclass(frozen=True)
class Effect:
    """What a step really did: one sentence and its numbers."""

    summary: str
    numbers: Mapping[str, int | float | str] = field(default_factory=dict)


class Step(Frozen):
    """One chosen option of an optimization group; its fields are exactly the keys of the option's YAML.

    Subclasses declare ``kind: Literal["…"]``, their fields without defaults (the YAML owns the values), ``order``,
    and are registered with :func:`register`.
    """

    order: ClassVar[Order]
    kind: str

    @property
    def traits(self) -> frozenset[Trait]:
        """What other steps may conflict with; may depend on the fields."""
        return frozenset()

    def traits_on(self, hardware: Hardware) -> frozenset[Trait]:
        """The traits on this hardware; on the CPU nothing records CUDA graphs."""
        return self.traits if hardware.device == "cuda" else self.traits - {Trait.CUDA_GRAPHS}

    def requires(self) -> Requirements:
        """What must hold for the step to work at all."""
        return Requirements()

    def problems(self, site: Site) -> tuple[str, ...]:
        """Reasons why this step cannot work on this model and hardware, known from data alone (no torch)."""
        return ()

    def load_kwargs(self, site: Site) -> dict[str, Any]:
        """Arguments for ``from_pretrained``; only steps of order LOAD have some."""
        return {}

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        """Change the pipeline in place. Raises Refusal where the pipeline cannot take it."""

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        """Prove the effect on the finished pipeline, after the last step and after warm-up.

        Raises NoEffect when nothing was done or when something undid it.
        """
        raise NotImplementedError(type(self).__name__)


_registry: dict[str, dict[str, type[Step]]] = {}


def register(*groups: str) -> Callable[[type[Step]], type[Step]]:
    """Class decorator: the step is what an option of ``groups`` with this ``kind`` becomes."""

    def enter(cls: type[Step]) -> type[Step]:
        (kind,) = cls.model_fields["kind"].annotation.__args__  # type: ignore[union-attr]
        for group in groups:
            known = _registry.setdefault(group, {})
            if kind in known:
                raise ValueError(f"{group}: kind {kind!r} is registered by {known[kind].__qualname__} already")
            known[kind] = cls
        return cls

    return enter


def kinds(group: str) -> Mapping[str, type[Step]]:
    """The registered step classes of a group, by kind."""
    return _registry[group]


class OneOf:
    """Annotation of a recipe field: one registered step of ``group``, told apart by ``kind``.

    A field typed as the base class would dump to ``{}`` and make all ids equal, so the schema is the tagged union.
    """

    def __init__(self, group: str) -> None:
        self.group = group

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {kind: handler.generate_schema(cls) for kind, cls in kinds(self.group).items()}
        return core_schema.tagged_union_schema(choices, discriminator="kind")
