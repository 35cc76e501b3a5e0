"""What works, but not as a newcomer may think: it is merely slow, or does nothing special on a device."""

from __future__ import annotations

from collections.abc import Iterator

from diffopt.recipe.rules.case import Case
from diffopt.recipe.rules.hardware import AMPERE
from diffopt.recipe.rules.memory import note_on_tight_memory
from diffopt.schema.step import Trait

ROUNDED = {"fp16": "float16", "bf16": "bfloat16"}  # what the weights of a variant of files are, by its usual name
MIN_SMS = 68  # torch/_inductor/utils.py, is_big_gpu: with fewer, inductor logs a warning and searches no product


def notes_on(case: Case) -> Iterator[str]:
    """All notes, one sentence each."""
    workload = case.cell.workload
    if len(workload.prompts) > workload.batch_size:
        yield f"workload: {len(workload.prompts)} prompts, but a batch of {workload.batch_size} draws only the first"
    yield from _idle_guidance(case)
    for model in case.cell.recipe.model.stages:
        if not model.pinned:
            yield f"model={model.name}: revision {model.revision or 'main'} is not pinned to a commit"
    yield from _rounded_weights(case)
    yield from note_on_tight_memory(case)
    yield from _long_compiles(case)
    if case.hardware.device == "cpu":
        for group, step in case.cell.recipe.steps:
            if Trait.CUDA_GRAPHS in step.traits:
                yield f"{case.key(group)}: there are no CUDA graphs on the CPU; it compiles and claims no more"
    yield from _emulated(case)
    if case.hardware.sms is not None and case.hardware.sms < MIN_SMS:
        for key in case.holders(Trait.SEARCHES_GEMM):
            has = f"{case.hardware.name} has {case.hardware.sms} SMs"
            yield f"{key}: {has}, and below {MIN_SMS} the compiler does not search kernels for matrix products"
    yield from _quantized_eagerly(case)


def _emulated(case: Case) -> Iterator[str]:
    """A dtype that the GPU computes with the units of another."""
    parts = case.dtypes("precision").get("bfloat16")
    if parts is not None and (case.hardware.compute_capability or AMPERE) < AMPERE:
        of = "" if case.dtype == "bfloat16" else f", the dtype of {' and '.join(sorted(parts))}"
        yield f"{case.key('precision')}: {case.hardware.name} emulates bfloat16{of}"


def _rounded_weights(case: Case) -> Iterator[str]:
    """Files in half precision, which nothing makes float32 again."""
    if case.dtype == "float32":
        for model in case.cell.recipe.model.stages:
            if model.weights == "pretrained" and model.variant in ROUNDED:
                yield (
                    f"{case.key('precision')}: model={model.name} takes files of model.variant={model.variant}, whose "
                    f"weights are rounded to {ROUNDED[model.variant]}; model.variant=null takes those that are not"
                )


def _idle_guidance(case: Case) -> Iterator[str]:
    """A scale that a distilled model is told of, if at all, in vain, or one that has nothing to guide away from."""
    model, workload = case.cell.recipe.model, case.cell.workload
    asked = workload.guidance
    if model.guides_by_negative_prompt and asked > 1 and not workload.negative_prompt:
        yield (
            f"workload.guidance={asked:g}: model={model.name} guides only away from a negative prompt, and none is "
            "given; 'workload.negative_prompt=\" \"' guides away from a blank one"
        )
    if model.embedded_guidance and model.guidance <= 1 and asked != model.guidance:
        yield f"workload.guidance={asked:g}: model={model.name} is distilled and draws the same at any scale"


def _quantized_eagerly(case: Case) -> Iterator[str]:
    """Quantized parts for which no code is generated."""
    compiled = frozenset[str]().union(*map(case.touched, case.groups(Trait.GENERATES_CODE)))
    for group in case.groups(Trait.QUANTIZES):
        if eager := case.touched(group) - compiled:
            of = f" of {' and '.join(sorted(eager))}" if compiled else ""
            key = case.key(group)
            yield f"{key}: without compile{of}, quantizing mostly costs time at each call instead of saving it"


def _long_compiles(case: Case) -> Iterator[str]:
    """Combinations that work, and of which compiling takes long for little."""
    for group in case.groups(Trait.GENERATES_CODE):
        compiler = case.key(group)
        for key in (case.key(hooks) for hooks in case.groups(Trait.HOOKS_LAYERS) if case.meet(hooks, group)):
            yield f"{key} x {compiler}: hooks part every layer from the next; many graphs are compiled, little is fused"
        for key in case.holders(Trait.DIVIDES_DECODING) if "vae_decode" in case.compiled else ():
            yield f"{key} x {compiler}: the graph holds the decoder once per picture and tile, and compiles for long"
