"""Every reason why a well-formed cell cannot work, each stated once. Pure data in, problems out; no torch.

Conflicts join *traits*, never names, so a new step inherits them. What is merely slow, or does nothing special on a
device, is a note: it is measured, not refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from diffopt.cell import Cell
from diffopt.memory_estimate import GIB, NOTED, estimate
from diffopt.memory_remedies import Remedy, remedies
from diffopt.recipe import Hardware, Model
from diffopt.step import Requirements, Trait


@dataclass(frozen=True)
class Problem:
    """Why a cell cannot work: the fact, the keys that cause it, what to do instead, and where that is known from."""

    fact: str
    keys: tuple[str, ...]
    remedy: str
    evidence: str = ""

    @property
    def text(self) -> str:
        source = f" [{self.evidence}]" if self.evidence else ""
        return f"{' x '.join(self.keys)}: {self.fact}; {self.remedy}{source}"


@dataclass(frozen=True)
class Conflict:
    """Two traits that no pipeline can bear at once."""

    first: Trait
    second: Trait
    fact: str
    remedy: str
    evidence: str


CONFLICTS = (
    Conflict(
        Trait.MOVES_WEIGHTS,
        Trait.CUDA_GRAPHS,
        "CUDA graphs replay fixed addresses, but the weights move",
        "choose compile=default or memory=resident",
        "https://github.com/huggingface/diffusers/issues/4399",
    ),
    Conflict(
        Trait.GRAPH_BREAKS,
        Trait.FULLGRAPH,
        "one breaks the graph, the other promises a whole one",
        "set compile.fullgraph=false",
        "https://docs.pytorch.org/docs/stable/generated/torch.compile.html",
    ),
    Conflict(
        Trait.LIVE_LORA,
        Trait.FUSES_QKV,
        "fusing q, k and v drops a live LoRA on them",
        "choose fuse=none or fuse the LoRA",
        "https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/attention.py",
    ),
    Conflict(
        Trait.HOT_SWAPS,
        Trait.COPIES_MODULES,
        "compile_regions puts wrapped modules in the place of those that a LoRA's file names",
        "choose compile=regional",
        "https://github.com/huggingface/accelerate/blob/main/src/accelerate/utils/other.py",
    ),
    Conflict(
        Trait.HOT_SWAPS,
        Trait.EXPORTS,
        "a package keeps the scales of the first LoRA, and a swap changes them",
        "choose compile=regional, or lora=live",
        "https://huggingface.co/docs/peft/main/en/package_reference/hotswap",
    ),
    Conflict(
        Trait.HOT_SWAPS,
        Trait.MOVES_WEIGHTS,
        "diffusers takes off the hooks that move weights to swap a LoRA, and puts on others that it chooses",
        "choose memory=resident",
        "https://github.com/huggingface/diffusers/blob/main/src/diffusers/loaders/lora_base.py",
    ),
    Conflict(
        Trait.STOCK_PROCESSOR,
        Trait.FUSES_QKV,
        "diffusers' vanilla processor calls to_q, to_k and to_v and so undoes the fusion",
        "choose fuse=none, or an attention backend such as attention=math",
        "https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/attention_processor.py",
    ),
    Conflict(
        Trait.CASTS_STORAGE,
        Trait.GENERATES_CODE,
        "layerwise casting has a hook on each layer, which breaks the graph there, and dynamo gives up after some",
        "choose compile=none, or quant=fp8_weight, whose weights are widened inside the graph",
        "https://github.com/huggingface/diffusers/blob/main/src/diffusers/hooks/layerwise_casting.py",
    ),
    Conflict(
        Trait.CACHES_BLOCKS,
        Trait.WHOLE_DENOISER,
        "the cache decides step by step around the blocks, which a graph of the whole denoiser has inside",
        "choose compile=regional, whose graphs are inside the cache",
        "https://github.com/huggingface/diffusers/blob/main/src/diffusers/hooks/first_block_cache.py",
    ),
    Conflict(
        Trait.CACHES,
        Trait.CUDA_GRAPHS,
        "the cache keeps tensors of earlier steps, and the replay of a CUDA graph overwrites its own",
        "choose compile=regional",
        "https://docs.pytorch.org/docs/stable/torch.compiler_cudagraph_trees.html",
    ),
    Conflict(
        Trait.CACHES,
        Trait.EXPORTS,
        "what is exported does the same in every step, and the cache does not",
        "choose compile=regional",
        "https://docs.pytorch.org/docs/stable/export.html",
    ),
    Conflict(
        Trait.MOVES_WEIGHTS,
        Trait.EXPORTS,
        "a package made ahead of time keeps the addresses of the weights, but these move",
        "choose compile=default or memory=resident",
        "https://huggingface.co/blog/zerogpu-aoti",
    ),
    Conflict(
        Trait.CASTS_STORAGE,
        Trait.EXPORTS,
        "layerwise casting replaces the weights in each call, and a package made ahead of time keeps their addresses",
        "choose compile=none",
        "https://huggingface.co/docs/diffusers/main/en/optimization/memory#layerwise-casting",
    ),
    Conflict(
        Trait.GRAPH_BREAKS,
        Trait.EXPORTS,
        "one breaks the graph, and only a whole one can be exported",
        "choose compile=default with compile.fullgraph=false",
        "https://docs.pytorch.org/docs/stable/export.html",
    ),
    Conflict(
        Trait.MOVES_WEIGHTS,
        Trait.COPIES_MODULES,
        "accelerate's compile_regions compiles nothing of a module that has an offload hook, and says nothing",
        "choose compile=regional or memory=resident",
        "https://github.com/huggingface/accelerate/issues/4253",
    ),
    Conflict(
        Trait.PACKS_ON_DEVICE,
        Trait.MOVES_WEIGHTS,
        "int4 weights are packed by a kernel of the GPU, but the weights are on the host when they are quantized",
        "choose quant=int8_weight or memory=resident",
        "https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/native_functions.yaml",
    ),
    Conflict(
        Trait.PINS_IN_PASSING,
        Trait.QUANTIZES,
        "diffusers keeps no copy of quantized weights that it could pin, and fails at the first call",
        "set memory.low_cpu_mem_usage=false",
        "https://github.com/huggingface/diffusers/issues/14433",
    ),
)

HOOK_EVIDENCE = "https://github.com/huggingface/accelerate/issues/3885"
EPSILON = 1e-6  # for 5 * (1 - 0.8), which floating point makes a little less than 1
IMG2IMG_EVIDENCE = "diffusers 0.42, get_timesteps of the img2img pipelines of FLUX.1, SD3, Qwen-Image and Z-Image"
AMPERE = (8, 0)
ADA = (8, 9)
TRITON = (7, 0)
FLOAT8_EVIDENCE = "https://github.com/pytorch/pytorch/issues/167082"
MIN_SMS = 68  # torch/_inductor/utils.py, is_big_gpu: with fewer, inductor logs a warning and searches no product
# "device capability major < 7": GPUTooOldForTriton
TRITON_EVIDENCE = "https://github.com/pytorch/pytorch/blob/main/torch/_inductor/scheduler.py"
BF16_EVIDENCE = "https://github.com/pytorch/pytorch/pull/129288"  # inductor warns and runs the frame eagerly


@dataclass(frozen=True)
class Case:
    """A cell with the names of the options that led to it, which is what messages speak of."""

    cell: Cell
    choices: Mapping[str, str]

    @property
    def hardware(self) -> Hardware:
        return self.cell.recipe.hardware

    @property
    def place(self) -> str:
        return f"hardware={self.hardware.name}"

    @property
    def dtype(self) -> str:
        """What the denoiser computes in, as the traits of the precision step tell it."""
        traits = self.cell.recipe.precision.traits
        if Trait.HALF_PRECISION_BF16 in traits:
            return "bfloat16"
        return "float16" if Trait.HALF_PRECISION_FP16 in traits else "float32"

    def key(self, group: str) -> str:
        return f"{group}={self.choices.get(group, getattr(self.cell.recipe, group).kind)}"

    def holders(self, trait: Trait) -> list[str]:
        """Keys of the steps that have this trait on this hardware."""
        return [self.key(group) for group, step in self.cell.recipe.steps if trait in step.traits_on(self.hardware)]


def problems(cell: Cell, choices: Mapping[str, str]) -> tuple[Problem, ...]:
    """All reasons why ``cell`` cannot work on the hardware it names; empty when there is none."""
    case = Case(cell, choices)
    return (*_other_problems(case), *_does_not_fit(case))


def notes(cell: Cell, choices: Mapping[str, str]) -> tuple[str, ...]:
    """What will work, but not as a newcomer may think."""
    return tuple(_notes(Case(cell, choices)))


def _other_problems(case: Case) -> tuple[Problem, ...]:
    """All but memory."""
    return (
        *_unsuited_workload(case),
        *_conflicts(case),
        *_hooks_in_graphs(case),
        *_unmet_requirements(case),
        *_compiler_limits(case),
        *_own_problems(case),
    )


def _does_not_fit(case: Case) -> Iterator[Problem]:
    """Refuse what needs more than the device has, and say which options would make it fit."""
    needed, has = estimate(case.cell), case.hardware.memory_gib
    if needed is None or has is None or needed.total <= has * GIB:
        return

    def works(remedy: Remedy) -> bool:
        changed = Case(remedy.cell, {**case.choices, **dict(remedy.options)})
        return len(_other_problems(changed)) <= len(_other_problems(case))

    found = [str(remedy) for remedy in remedies(case.cell, NOTED * has * GIB, works)]
    remedy = f"it would fit with {', or with '.join(found)}" if found else "no option that diffopt has makes it fit"
    keys = (f"model={case.cell.recipe.model.name}", case.place)
    yield Problem(f"needs about {needed}, {case.hardware.name} has {has:g}", keys, remedy)


def _hardly_fits(case: Case) -> Iterator[str]:
    needed, has = estimate(case.cell), case.hardware.memory_gib
    if needed is not None and has is not None and NOTED * has * GIB < needed.total <= has * GIB:
        fact = f"needs about {needed}, {case.hardware.name} has {has:g}, and kernels take some too"
        yield f"model={case.cell.recipe.model.name}: {fact}"


def _unsuited_workload(case: Case) -> Iterator[Problem]:
    """What is asked of a model that it cannot do."""
    model, workload = case.cell.recipe.model, case.cell.workload
    if workload.task not in model.pipelines.tasks:
        can = " or ".join(f"workload={task}" for task in model.pipelines.tasks)
        fact = f"model {model.name} has no pipeline for {workload.task}"
        yield Problem(fact, (f"model={model.name}", f"workload.task={workload.task}"), f"choose {can}")
    elif workload.task == "img2img" and model.denoiser == "transformer":
        yield from _ignored_picture(case)
    if workload.negative_prompt and not any(map(_reads_negative_prompt, model.stages, _guidances(case))):
        fact = "its guidance is embedded, or not above 1, so that no negative prompt is read"
        yield Problem(fact, (f"model={model.name}", "workload.negative_prompt"), "leave the negative prompt empty")
    for stage in model.cascade:
        if stage.task != "upscale":
            fact = f"a later stage of a cascade scales pictures up, but {stage.name} is for {stage.task}"
            yield Problem(fact, ("model.cascade",), "name models with the task upscale")


def _reads_negative_prompt(model: Model, guidance: float) -> bool:
    return guidance > 1 and not model.embedded_guidance and model.embeddings is None


def _guidances(case: Case) -> list[float]:
    """The guidance of each stage."""
    workload = case.cell.workload
    return [workload.guidance, *(stage.guidance for stage in workload.later_stages)]


def _ignored_picture(case: Case) -> Iterator[Problem]:
    """Flow matching begins at pure noise: a strength that leaves out no whole step never looks at the picture."""
    steps, strength = case.cell.workload.steps, case.cell.workload.strength
    if strength is not None and steps * (1 - strength) < 1 - EPSILON:
        fact = f"with {steps} steps a strength of {strength} begins at the first one, which is pure noise"
        keys = ("workload.strength", f"model={case.cell.recipe.model.name}")
        remedy = f"take more steps, or a strength of {1 - 1 / steps:.2g} or less, or the picture has no effect"
        yield Problem(fact, keys, remedy, IMG2IMG_EVIDENCE)


def _conflicts(case: Case) -> Iterator[Problem]:
    for conflict in CONFLICTS:
        for first in case.holders(conflict.first):
            for second in case.holders(conflict.second):
                yield Problem(conflict.fact, (first, second), conflict.remedy, conflict.evidence)


def _hooks_in_graphs(case: Case) -> Iterator[Problem]:
    """Hooks around a component are inside of its graph where the whole component is compiled, not where blocks are."""
    step = case.cell.recipe.compile
    entered = Trait.WHOLE_DENOISER in step.traits or _compiled(case) - {"denoiser"}
    if entered and Trait.FULLGRAPH in step.traits:
        for key in case.holders(Trait.HOOKS_COMPONENTS):
            fact = "the hooks that move a component break its graph, and a whole one is promised"
            remedy = "choose compile=regional, or set compile.fullgraph=false for one graph inside of the hooks"
            yield Problem(fact, (key, case.key("compile")), remedy, HOOK_EVIDENCE)


def _compiled(case: Case) -> frozenset[str]:
    """The words for what is compiled; empty where nothing is."""
    return frozenset(getattr(case.cell.recipe.compile, "components", ()))


def _unmet_requirements(case: Case) -> Iterator[Problem]:
    for group, step in case.cell.recipe.steps:
        needs = step.requires()
        if case.hardware.device not in needs.devices:
            fact = f"works on {' or '.join(sorted(needs.devices))} only"
            yield Problem(fact, (case.key(group), case.place), f"choose another {group}", needs.evidence)
        else:
            yield from _unmet_capability(case, group, needs)
        if case.hardware.device == "cuda" and needs.dtypes is not None and case.dtype not in needs.dtypes:
            options = " or ".join(sorted(needs.dtypes))
            fact = f"works in {options} only, the pipeline computes in {case.dtype}"
            keys = (case.key(group), case.key("precision"))
            yield Problem(fact, keys, f"choose a precision of {options}", needs.evidence)


def _unmet_capability(case: Case, group: str, needs: Requirements) -> Iterator[Problem]:
    found = case.hardware.compute_capability
    if found is None:
        return
    has = f"{case.hardware.name} has {_dotted(found)}"
    keys = (case.key(group), case.place)
    if needs.compute_capability is not None and found < needs.compute_capability:
        fact = f"needs compute capability {_dotted(needs.compute_capability)}, {has}"
        yield Problem(fact, keys, f"choose another {group} or a newer GPU", needs.evidence)
    least = needs.bfloat16_compute_capability
    if least is not None and case.dtype == "bfloat16" and found < least:
        fact = f"takes bfloat16 from compute capability {_dotted(least)} on, {has}"
        yield Problem(fact, (*keys, case.key("precision")), f"choose precision=fp16 or another {group}", needs.evidence)
    exact = needs.exact_compute_capabilities
    if exact is not None and found not in exact:
        fact = f"has kernels for compute capability {', '.join(map(_dotted, sorted(exact)))} alone, {has}"
        yield Problem(fact, keys, f"choose another {group}", needs.evidence)


def _compiler_limits(case: Case) -> Iterator[Problem]:
    """What Triton, to which inductor compiles on a GPU, cannot do there."""
    found = case.hardware.compute_capability
    if found is None:
        return
    has = f"{case.hardware.name} has {_dotted(found)}"
    for key in case.holders(Trait.GENERATES_CODE):
        if found < TRITON:
            fact = f"Triton compiles for compute capability {_dotted(TRITON)} and up, {has}"
            yield Problem(fact, (key, case.place), "choose compile=none", TRITON_EVIDENCE)
        elif found < AMPERE and case.dtype == "bfloat16":
            fact = f"Triton has no bfloat16 below compute capability {_dotted(AMPERE)}, {has}"
            keys = (case.key("precision"), key, case.place)
            yield Problem(fact, keys, "choose precision=fp16 or compile=none", BF16_EVIDENCE)
        for quant in case.holders(Trait.FLOAT8) if TRITON <= found < ADA else ():
            fact = f"Triton has no float8 (e4m3) below compute capability {_dotted(ADA)}, {has}"
            yield Problem(fact, (quant, key, case.place), "choose quant=int8_weight or compile=none", FLOAT8_EVIDENCE)


def _own_problems(case: Case) -> Iterator[Problem]:
    for group, step in case.cell.recipe.steps:
        for site in case.cell.sites:
            for fact in step.problems(site):
                yield Problem(fact, (case.key(group), f"model={site.model.name}"), f"choose another {group}")


def _notes(case: Case) -> Iterator[str]:
    workload = case.cell.workload
    if len(workload.prompts) > workload.batch_size:
        yield f"workload: {len(workload.prompts)} prompts, but a batch of {workload.batch_size} draws only the first"
    for model in case.cell.recipe.model.stages:
        if not model.pinned:
            yield f"model={model.name}: revision {model.revision or 'main'} is not pinned to a commit"
    yield from _hardly_fits(case)
    yield from _long_compiles(case)
    if case.hardware.device == "cpu":
        for group, step in case.cell.recipe.steps:
            if Trait.CUDA_GRAPHS in step.traits:
                yield f"{case.key(group)}: there are no CUDA graphs on the CPU; it compiles and claims no more"
    elif case.dtype == "bfloat16" and (case.hardware.compute_capability or AMPERE) < AMPERE:
        yield f"{case.key('precision')}: {case.hardware.name} emulates bfloat16"
    if case.hardware.sms is not None and case.hardware.sms < MIN_SMS:
        for key in case.holders(Trait.SEARCHES_GEMM):
            has = f"{case.hardware.name} has {case.hardware.sms} SMs"
            yield f"{key}: {has}, and below {MIN_SMS} the compiler does not search kernels for matrix products"
    if case.holders(Trait.QUANTIZES) and not case.holders(Trait.GENERATES_CODE):
        yield f"{case.key('quant')}: without compile, quantizing mostly costs time at each call instead of saving it"


def _long_compiles(case: Case) -> Iterator[str]:
    """Combinations that work, and of which compiling takes long for little."""
    for compiler in case.holders(Trait.GENERATES_CODE):
        for key in case.holders(Trait.HOOKS_LAYERS):
            yield f"{key} x {compiler}: hooks part every layer from the next; many graphs are compiled, little is fused"
        for key in case.holders(Trait.DIVIDES_DECODING) if "vae_decode" in _compiled(case) else ():
            yield f"{key} x {compiler}: the graph holds the decoder once per picture and tile, and compiles for long"


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
