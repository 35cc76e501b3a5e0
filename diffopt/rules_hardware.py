"""What a device, and the compiler on it, cannot do for a step that asks for more."""

from __future__ import annotations

from collections.abc import Iterator

from diffopt.rules_case import Case, Problem
from diffopt.step import Requirements, Trait

TRITON = (7, 0)  # compute capabilities
AMPERE = (8, 0)
ADA = (8, 9)
# "device capability major < 7": GPUTooOldForTriton
TRITON_EVIDENCE = "https://github.com/pytorch/pytorch/blob/main/torch/_inductor/scheduler.py"
BF16_EVIDENCE = "https://github.com/pytorch/pytorch/pull/129288"  # inductor warns and runs the frame eagerly
FLOAT8_EVIDENCE = "https://github.com/pytorch/pytorch/issues/167082"


def unmet_requirements(case: Case) -> Iterator[Problem]:
    """Devices, compute capabilities and dtypes that a step requires, and the cell has not."""
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


def compiler_limits(case: Case) -> Iterator[Problem]:
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


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
