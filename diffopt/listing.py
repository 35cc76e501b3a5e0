"""What ``diffopt ls`` says: every option in one line, what it needs, and whether it works here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffopt import hardware, packages
from diffopt.compose import Composer
from diffopt.errors import UsageError
from diffopt.labels import GROUP_ORDER
from diffopt.plan import make_plan
from diffopt.recipe import STEP_GROUPS
from diffopt.resolve import Resolver
from diffopt.step import Requirements, Step


@dataclass(frozen=True)
class Row:
    """One option of a group."""

    option: str
    says: str
    needs: str
    here: str  # "yes", or why not on this machine


def groups(composer: Composer) -> list[tuple[str, list[str]]]:
    """Every group with its options."""
    known = [group for group in GROUP_ORDER if group in composer.groups]
    return [(group, composer.options(group)) for group in (*known, *sorted(set(composer.groups) - set(known)))]


def options(composer: Composer, group: str) -> list[Row]:
    """Every option of ``group``. Raises UsageError for a group that does not exist."""
    if group not in composer.groups:
        raise UsageError(f"There is no group '{group}'. Groups: {', '.join(name for name, _ in groups(composer))}.")
    return [_row(composer, group, option) for option in composer.options(group)]


def first_line(path: Path) -> str:
    """The first comment line of a YAML, which says what the option does."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").strip()
    return ""


def _row(composer: Composer, group: str, option: str) -> Row:
    try:
        composer.read_option(group, option)
        says = first_line(composer.option_file(group, option))
        if group in STEP_GROUPS:
            return _step_row(composer, group, option, says)
        if group == "hardware":
            return _hardware_row(composer, option, says)
    except UsageError as error:  # one broken file of the user's must not hide the other options
        return Row(option, "", "", f"broken: {error}")
    return Row(option, says, "", "yes")


def _step_row(composer: Composer, group: str, option: str, says: str) -> Row:
    request = Resolver(composer).request(composer.compose([f'{group}="{option}"']))
    step: Step = getattr(request.cell.recipe, group)
    key = f"{group}={option}"
    lacking = packages.lacking([step.requires()])
    place = f"hardware={request.cell.recipe.hardware.name}"
    reasons = [p.fact for p in make_plan(request.cell, request.choices).problems if {key, place} <= set(p.keys)]
    reasons += [lacking] if lacking else []
    return Row(option, says, describe(step.requires()), "; ".join(dict.fromkeys(reasons)) or "yes")


def _hardware_row(composer: Composer, option: str, says: str) -> Row:
    request = Resolver(composer).request(composer.compose([f'hardware="{option}"']))
    here = hardware.check_declared(request.cell.recipe.hardware)
    name = request.cell.recipe.hardware.name
    return Row(option, says, f"here: {name}" if option == "auto" else "", here or "yes")


def describe(needs: Requirements) -> str:
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
