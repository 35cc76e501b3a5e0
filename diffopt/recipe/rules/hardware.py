"""What a device, and the compiler on it, cannot do for a step that asks for more."""

from __future__ import annotations

from collections.abc import Iterator

from diffopt.recipe.planned import Problem
from diffopt.recipe.rules.case import Case
from diffopt.schema.step import Requirements, Trait

TRITON = (7, 0)  # compute capabilities
AMPERE = (8, 0)
ADA = (8, 9)
# "device capability major < 7": GPUTooOldForTriton
TRITON_EVIDENCE = "https://github.com/pytorch/pytorch/blob/main/torch/_inductor/scheduler.py"
BF16_EVIDENCE = "https://github.com/pytorch/pytorch/pull/129288"  # inductor warns and runs the frame eagerly
FLOAT8_EVIDENCE = "https://github.com/pytorch/pytorch/issues/167082"


def rule_on_requirements(case: Case) -> Iterator[Problem]:
    """Devices, compute capabilities and dtypes that a step requires, and the cell has not."""
    for group, step in case.cell.recipe.steps:
        needs = step.requires()
        if case.hardware.device not in needs.devices:
            fact = f"works on {' or '.join(sorted(needs.devices))} only"
            yield Problem(fact, (case.key(group), case.place), f"choose another {group}", needs.evidence)
        else:
            yield from _unmet_capability(case, group, needs)
        if case.hardware.device == "cuda" and needs.dtypes is not None:
            yield from _unmet_dtypes(case, group, needs.dtypes, needs.evidence)


def _unmet_dtypes(case: Case, group: str, dtypes: frozenset[str], evidence: str) -> Iterator[Problem]:
    options, keys = " or ".join(sorted(dtypes)), (case.key(group), case.key("precision"))
    for dtype, parts in case.dtypes(group).items():
        if dtype not in dtypes:
            whole = dtype == case.dtype
            fact = f"works in {options} only, the pipeline computes {'' if whole else f'{_named(parts)} '}in {dtype}"
            other = f"choose a precision {'of' if whole else f'that computes {_named(parts)} in'} {options}"
            yield Problem(fact, keys, other if whole else case.without(group, parts, other), evidence)


def _unmet_capability(case: Case, group: str, needs: Requirements) -> Iterator[Problem]:
    found = case.hardware.compute_capability
    if found is None:
        return
    has = f"{case.hardware.name} has {_dotted(found)}"
    keys = (case.key(group), case.place)
    if needs.compute_capability is not None and found < needs.compute_capability:
        fact = f"needs compute capability {_dotted(needs.compute_capability)}, {has}"
        yield Problem(fact, keys, f"choose another {group} or a newer GPU", needs.evidence)
    least, parts = needs.bfloat16_compute_capability, case.dtypes(group).get("bfloat16")
    if least is not None and parts is not None and found < least:
        fact = f"takes bfloat16{_in_parts(case, parts)} from compute capability {_dotted(least)} on, {has}"
        remedy = _not_in_bfloat16(case, group, parts, f"another {group}")
        yield Problem(fact, (*keys, case.key("precision")), remedy, needs.evidence)
    exact = needs.exact_compute_capabilities
    if exact is not None and found not in exact:
        fact = f"has kernels for compute capability {', '.join(map(_dotted, sorted(exact)))} alone, {has}"
        yield Problem(fact, keys, f"choose another {group}", needs.evidence)


def rule_on_compilers(case: Case) -> Iterator[Problem]:
    """What Triton, to which inductor compiles on a GPU, cannot do there."""
    found = case.hardware.compute_capability
    if found is None:
        return
    has = f"{case.hardware.name} has {_dotted(found)}"
    for group in case.groups(Trait.GENERATES_CODE):
        key, parts = case.key(group), case.dtypes(group).get("bfloat16")
        if found < TRITON:
            fact = f"Triton compiles for compute capability {_dotted(TRITON)} and up, {has}"
            yield Problem(fact, (key, case.place), "choose compile=none", TRITON_EVIDENCE)
        elif found < AMPERE and parts is not None:
            fact = f"Triton has no bfloat16{_in_parts(case, parts)} below compute capability {_dotted(AMPERE)}, {has}"
            keys = (case.key("precision"), key, case.place)
            yield Problem(fact, keys, _not_in_bfloat16(case, group, parts, "compile=none"), BF16_EVIDENCE)
        for quant in case.groups(Trait.FLOAT8) if TRITON <= found < ADA else ():
            if case.meet(quant, group):
                fact = f"Triton has no float8 (e4m3) below compute capability {_dotted(ADA)}, {has}"
                keys = (case.key(quant), key, case.place)
                yield Problem(fact, keys, "choose quant=int8_weight or compile=none", FLOAT8_EVIDENCE)


def _in_parts(case: Case, parts: frozenset[str]) -> str:
    """Which parts are in bfloat16, where it is not the whole pipeline."""
    return "" if case.dtype == "bfloat16" else f", the dtype of {_named(parts)},"


def _not_in_bfloat16(case: Case, group: str, parts: frozenset[str], other: str) -> str:
    """A remedy: ``other`` is what the user might choose besides."""
    if case.dtype == "bfloat16":
        return f"choose precision=fp16 or {other}"
    return case.without(group, parts, f"choose {other}")


def _named(parts: frozenset[str]) -> str:
    return " and ".join(sorted(parts))


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
