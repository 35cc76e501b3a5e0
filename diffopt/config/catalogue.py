"""What ``diffopt ls`` says: every option in one line, what it needs, and whether it works here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diffopt.config import Composed, Composer
from diffopt.config.resolve import Resolver
from diffopt.errors import UsageError
from diffopt.machine import hardware, nvml, packages
from diffopt.machine.hardware import GIB, host_memory_bytes
from diffopt.machine.interpreter import why_interpreter_is_absent
from diffopt.recipe.cell import Cell
from diffopt.recipe.explain import explain_invalid_recipe
from diffopt.recipe.options import merged_option, shipped_step
from diffopt.recipe.recipe import GROUP_ORDER, STEP_GROUPS
from diffopt.recipe.rules import problems_of_cell
from diffopt.recipe.rules.estimate import estimate_memory_of_cell
from diffopt.schema.model import Model
from diffopt.schema.runtime import CURRENT, Runtime, resolve_runtime
from diffopt.schema.step import Requirements, Step
from diffopt.schema.words import PRECISION_OF_DTYPE
from diffopt.steps.foreign import PluginFails

HALF_BYTES = 2  # of a weight in float16 or bfloat16
PART_NAMES = {"denoiser": "", "text_encoders": " text", "vae": " VAE"}


@dataclass(frozen=True)
class Row:
    """One option of a group."""

    option: str
    says: str
    needs: str
    here: str  # "yes", or why not on this machine; of a model, what of the memory it takes


def list_groups(composer: Composer) -> list[tuple[str, list[str]]]:
    """Every group with its options."""
    known = [group for group in GROUP_ORDER if group in composer.groups]
    return [(group, composer.options(group)) for group in (*known, *sorted(set(composer.groups) - set(known)))]


def list_options(composer: Composer, group: str) -> list[Row]:
    """Every option of ``group``. Raises UsageError for a group that does not exist."""
    if group not in composer.groups:
        raise UsageError(
            f"There is no group '{group}'. Groups: {', '.join(name for name, _ in list_groups(composer))}."
        )
    resolver = Resolver(composer)  # it looks the machine up once
    return [_row(composer, resolver, group, option) for option in composer.options(group)]


def first_line_of_option(path: Path) -> str:
    """The first comment line of a YAML, which says what the option does."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").strip()
    return ""


def _row(composer: Composer, resolver: Resolver, group: str, option: str) -> Row:
    try:
        composer.read_option(group, option)
        says = first_line_of_option(composer.option_file(group, option))
        if group in STEP_GROUPS:
            return _step_row(composer, resolver, group, option, says)
        if group == "hardware":
            return _hardware_row(composer, resolver, option, says)
        if group == "model":
            return _model_row(composer, resolver, option, says)
        if group == "recipe":
            return _recipe_row(composer, resolver, option, says)
        if group == "runtime":
            data = merged_option(partial(composer.read_option, "runtime"), option)
            return Row(option, says, "", _runtime_here(data, option))
    except (UsageError, PluginFails) as error:  # one broken file, or plug-in, must not hide the other options
        return Row(option, "", "", f"broken: {error}")
    return Row(option, says, "", "yes")


def _step_row(composer: Composer, resolver: Resolver, group: str, option: str, says: str) -> Row:
    request = resolver.request(composer.compose([f'{group}="{option}"']))
    step: Step = getattr(request.cell.recipe, group)
    reasons = _reasons_of_machine(request.cell, [step], f"{group}={option}")
    return Row(option, says, describe_option_requirements(step.requires()), "; ".join(reasons) or "yes")


def _recipe_row(composer: Composer, resolver: Resolver, option: str, says: str) -> Row:
    """A recipe on this machine, whichever model it is for; its options need what `ls` of their groups says."""
    cell = resolver.request(composer.compose([f'recipe="{option}"'])).cell
    reasons = _reasons_of_machine(cell, [step for _, step in cell.recipe.steps])
    return Row(option, says, "", f"no: {'; '.join(reasons)}" if reasons else "yes")


def _reasons_of_machine(cell: Cell, steps: Sequence[Step], key: str | None = None) -> list[str]:
    """Why these steps cannot work on this machine; of its plan's problems those that name it, and ``key``."""
    place = f"hardware={cell.recipe.hardware.name}"
    named = [p for p in problems_of_cell(cell) if place in p.keys and (key is None or key in p.keys)]
    facts = [p.fact if key else f"{', '.join(k for k in p.keys if k != place)}: {p.fact}" for p in named]
    lacking = packages.reason_of_lacking([step.requires() for step in steps])
    return list(dict.fromkeys([*facts, *([lacking] if lacking else [])]))


def _hardware_row(composer: Composer, resolver: Resolver, option: str, says: str) -> Row:
    request = resolver.request(composer.compose([f'hardware="{option}"']))
    here = hardware.why_hardware_is_not_here(request.cell.recipe.hardware)
    name = request.cell.recipe.hardware.name
    return Row(option, says, f"here: {name}" if option == "auto" else "", here or "yes")


def _model_row(composer: Composer, resolver: Resolver, option: str, says: str) -> Row:
    """A model in its customary precision and workload on this machine's first GPU, or on its CPU."""
    data = merged_option(partial(composer.read_option, "model"), option)
    if data.get("path") is None and data.get("architecture") is None:  # nothing is looked up on the hub
        given = "what its files on the hub say" if data.get("id") else "what its first line names"
        return Row(option, says, given, "not known")
    defaults = composer.compose([])
    chosen = Composed({**defaults.data, "model": data}, {**defaults.choices, "model": option})
    if composer.own_file("model", option) is not None:
        chosen = composer.compose([f'model="{option}"'])  # which knows where each value comes from
    recipe = (cell := resolver.request(chosen).cell).recipe
    customary = {"precision": shipped_step("precision", PRECISION_OF_DTYPE[recipe.model.dtype])}
    needed = estimate_memory_of_cell(cell.model_copy(update={"recipe": recipe.model_copy(update=customary)}))
    return Row(
        option, says, describe_model_option(recipe.model), "not known" if needed is None else _fits(needed.total)
    )


def _runtime_here(data: dict[str, Any], option: str) -> str:
    """Whether a program is where an interpreter should be. Nothing is started: what it has, a run asks it."""
    try:
        found = resolve_runtime(data, option)
    except UsageError as error:  # the option is well formed; its interpreter is given on the command line, or is amiss
        return str(error).rstrip(".")
    try:
        runtime = Runtime.model_validate(found)
    except ValidationError as error:
        raise UsageError(explain_invalid_recipe(error, prefix="runtime")) from error
    return why_interpreter_is_absent(runtime) or (
        "yes" if runtime == CURRENT else "yes, a program is there; not started"
    )


def _fits(needed: int) -> str:
    has = _memory_here()
    words = f"{needed / GIB:.1f}" if needed >= GIB / 10 else "<0.1"
    return f"{'yes' if needed <= has else 'no'}, {words} of {has / GIB:.1f} GiB"


def _memory_here() -> int:
    """Bytes of the first GPU's memory as NVML tells, else of this machine's."""
    gpus = nvml.detect_gpus()
    return gpus[0].memory_bytes if gpus else host_memory_bytes()


def describe_model_option(model: Model) -> str:
    """What a model needs in a few words: its parameters, their memory in half precision, and what its licence asks."""
    words: list[str] = []
    sizes = {part: [getattr(stage.parameters, part) or 0 for stage in model.stages] for part in PART_NAMES}
    counts = {part: sum(size) for part, size in sizes.items()}
    if counts["denoiser"]:
        parts = [f"{_count(count)}{PART_NAMES[part]}" for part, count in counts.items() if count]
        half = PRECISION_OF_DTYPE["float16" if model.dtype == "float16" else "bfloat16"]
        words = [" + ".join(parts), f"{_bytes(sum(counts.values()) * HALF_BYTES)} in {half}"]
    terms = [model.licence or ("licence not known" if model.id else None), "gated" if model.gated else None]
    terms += [None if all(stage.pinned for stage in model.stages) else "unpinned"]
    return "; ".join([*words, ", ".join(term for term in terms if term)]).rstrip("; ")


def _count(parameters: int) -> str:
    """Such as "11.9 B", "0.08 B", "1.2 M"."""
    if parameters < 10**7:
        return f"{parameters / 10**6:.1f} M"
    return f"{parameters / 10**9:.{1 if parameters >= 10**9 else 2}f} B"


def _bytes(count: int) -> str:
    return f"{count / 10**9:.1f} GB" if count >= 10**8 else f"{count / 10**6:.1f} MB"


def describe_option_requirements(needs: Requirements) -> str:
    """Requirements in a few words."""
    parts: list[str] = []
    if needs.devices != Requirements().devices:
        parts.append(" or ".join(sorted(needs.devices)))
    if needs.compute_capability is not None:
        parts.append("compute capability {}.{}".format(*needs.compute_capability))
    if needs.exact_compute_capabilities is not None:
        exact: Sequence[tuple[int, int]] = sorted(needs.exact_compute_capabilities)
        parts.append("compute capability " + " or ".join(f"{major}.{minor}" for major, minor in exact))
    if needs.dtypes is not None:
        parts.append(" or ".join(sorted(needs.dtypes)))
    return ", ".join((*parts, *needs.packages))
