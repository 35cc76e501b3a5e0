"""The one base class of all optimizations, and the words that steps and rules share.

A *step* is one chosen option of a config group as an object: its fields are the settings in the option's YAML,
``apply`` is its effect on a pipeline, ``verify`` the proof of that effect. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from diffopt.schema.record import Frozen

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from diffopt.schema.hardware import Hardware
    from diffopt.schema.model import Model
    from diffopt.schema.workload import Workload

# what plug-ins may rely on
__all__ = ["Effect", "Order", "Requirements", "Site", "Step", "Trait", "register"]


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
    """What a step does that another step may not bear; conflicts in recipe/rules join traits, never names."""

    TRACES = auto()  # torch.compile captures it, whatever its backend
    GENERATES_CODE = auto()  # inductor writes kernels, in Triton on a GPU; other backends of torch.compile only capture
    HAS_NO_LOWERING = auto()  # inductor cannot write its kernel on this device
    CUDA_GRAPHS = auto()  # records CUDA graphs, which replay fixed addresses (never on the CPU)
    FULLGRAPH = auto()  # promises that nothing breaks the graph
    GRAPH_BREAKS = auto()  # breaks the graph
    MOVES_WEIGHTS = auto()  # weights move between host and device while the pipeline runs
    HOOKS_COMPONENTS = auto()  # hooks that break the graph around whole components, outside of their blocks
    HOOKS_LAYERS = auto()  # a hook that breaks the graph around every layer of the denoiser
    DIVIDES_DECODING = auto()  # calls the VAE's decoder for each picture or tile by itself
    PACKS_ON_DEVICE = auto()  # rewrites weights with a kernel of the GPU, so they must be there when it does
    PINS_IN_PASSING = auto()  # pins weights each time they are streamed, and so holds no copy of them
    STOCK_PROCESSOR = auto()  # installs diffusers' own attention processor, which ignores fused projections
    FUSES_QKV = auto()  # q, k, v become one matrix
    QUANTIZES = auto()  # Linear weights become 8 or 4 bit
    FLOAT8 = auto()  # weights are float8 (e4m3)
    LIVE_LORA = auto()  # LoRA layers stay separate
    HOT_SWAPS = auto()  # weights of LoRA layers are replaced in place between calls
    CASTS_STORAGE = auto()  # weights are stored narrow and widened for each call
    COPIES_MODULES = auto()  # puts copies of modules in their place, which leave hooks with the originals
    WHOLE_DENOISER = auto()  # captures the denoiser as one graph, with its hooks
    CACHES = auto()  # keeps tensors of earlier denoising steps, and decides in each what is computed anew
    CACHES_BLOCKS = auto()  # decides so by hooks around the blocks or the denoiser
    COUNTS_STEPS = auto()  # takes the steps of the workload for the number of calls of the denoiser
    CALLS_TWICE = auto()  # a sampler that has the denoiser called twice in each step but the last
    LEARNS_ORDER = auto()  # learns in the first step which group of the denoiser follows which, and relies on it
    EXPORTS = auto()  # captures the denoiser whole, for ever and with the addresses of its weights
    SEARCHES_GEMM = auto()  # lets the compiler time kernels for matrix products and take the fastest


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What a step needs; plan checks the device, run checks the packages, ls shows both."""

    devices: frozenset[str] = frozenset({"cuda", "cpu"})
    compute_capability: tuple[int, int] | None = None  # at least this, on CUDA
    exact_compute_capabilities: frozenset[tuple[int, int]] | None = None  # one of these, on CUDA (FlashAttention 3)
    bfloat16_compute_capability: tuple[int, int] | None = None  # at least this where a part it touches is in bfloat16
    packages: tuple[str, ...] = ()  # PEP 508, such as "xformers>=0.0.29"
    install: str | None = None  # how to get the packages, where pip install would not do
    dtypes: frozenset[str] | None = None  # "float16", "bfloat16", "float32": what works on CUDA; None: all
    evidence: str = ""  # link or file that shows it


@dataclass(frozen=True)
class Site:
    """What a step may read while it works. Never a sibling step."""

    model: Model
    hardware: Hardware
    workload: Workload | None  # None when a pipeline is optimized without a workload (diffopt.optimize)
    code_id: str | None = None  # what code compiled for its modules is kept under; tells nothing of other steps
    cascade: tuple[Model, ...] = ()  # all of its stages, where the model is one of them; the workload is the first's


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

    def dtype_of(self, part: str, site: Site) -> str:
        """What ``part`` (denoiser, text_encoders, vae) computes in, by torch's name; asked of the precision step."""
        return "float32"

    def weight_bytes(self, part: str, site: Site) -> float | None:
        """Bytes that a weight of ``part`` (denoiser, text_encoders, vae) takes after this step; None: as before it.

        This method and the next two are what ``recipe.rules.estimate`` asks; rather too little than too much.
        """
        return None

    def on_device(self, weights: Mapping[str, float], working: str | None) -> float:
        """Bytes of ``weights``, given by part, that are on the device while ``working`` runs; asked of memory steps.

        ``working`` is None while no part of this pipeline runs, as when another stage of a cascade does.
        """
        return sum(weights.values())

    def activation_share(self, working: str, *, batch: int, height: int, width: int) -> float:
        """The share that this step leaves of the activations of ``working`` (denoiser, or vae: its decoder).

        ``batch`` is in pictures, ``height`` and ``width`` of the picture in pixels.
        """
        return 1.0

    def check_loaded(self, pipe: DiffusionPipeline, site: Site) -> None:
        """Raise NoEffect where the pipeline, to which nothing was applied yet, was loaded otherwise than asked."""

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        """Change the pipeline in place. Raises Refusal where the pipeline cannot take it."""

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        """Prove the effect on the finished pipeline, after the last step and after warm-up.

        Raises NoEffect when nothing was done or when something undid it.
        """
        raise NotImplementedError(type(self).__name__)


_registry: dict[str, dict[str, type[Step]]] = {}


def register(*groups: str) -> Callable[[type[Step]], type[Step]]:
    """Class decorator: the step is what an option of ``groups`` with this ``kind`` becomes.

    Raises TypeError for what is no step, and ValueError for a kind that the group has already.
    """

    def enter(cls: type[Step]) -> type[Step]:
        kind = _kind_of_step(cls)
        for group in groups:
            known = _registry.setdefault(group, {})
            if kind in known:
                raise ValueError(f"{group}: kind {kind!r} is registered by {known[kind].__qualname__} already")
            known[kind] = cls
        return cls

    return enter


def _kind_of_step(cls: type[Step]) -> str:
    """The one word that ``kind`` may be. Raises TypeError for a class whose pipelines nothing could plan."""
    if not (isinstance(cls, type) and issubclass(cls, Step)):
        raise TypeError(f"{getattr(cls, '__qualname__', cls)} is no Step")
    words = get_args(cls.model_fields["kind"].annotation)
    if len(words) != 1 or not isinstance(words[0], str):
        raise TypeError(f'{cls.__qualname__} declares no kind: Literal["…"]')
    if not isinstance(getattr(cls, "order", None), Order):
        raise TypeError(f"{cls.__qualname__} has no order")
    return words[0]


@contextmanager
def all_registered_or_none(then: Callable[[type[Step]], None]) -> Iterator[None]:
    """Steps that were registered while this lasted are no more when it ends with an exception, or ``then`` does so.

    So does a field of theirs of a type that nobody knows, which would make every recipe unreadable.
    """
    before = {group: dict(known) for group, known in _registry.items()}
    try:
        yield
        for group, known in _registry.items():
            for kind in known.keys() - before.get(group, {}).keys():
                known[kind].model_rebuild()
                then(known[kind])
    except BaseException:
        _registry.clear()
        _registry.update(before)
        raise


def registered_step_kinds(group: str) -> Mapping[str, type[Step]]:
    """The registered step classes of a group, by kind."""
    return _registry[group]


class OneOf:
    """Annotation of a recipe field: one registered step of ``group``, told apart by ``kind``.

    A field typed as the base class would dump to ``{}`` and make all ids equal, so the schema is the tagged union.
    """

    def __init__(self, group: str) -> None:
        self.group = group

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {kind: handler.generate_schema(cls) for kind, cls in registered_step_kinds(self.group).items()}
        return core_schema.tagged_union_schema(choices, discriminator="kind")
