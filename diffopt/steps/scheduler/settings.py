"""Settings of a sampler that its class does not take, or that change nothing there. Pure data: a plan needs no torch.

Read in diffusers 0.42.1; tests/steps/scheduler/test_sampler.py compares it with the library that is installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from diffopt.models.classes import Process
from diffopt.steps.scheduler.support import SPACINGS, Known

_SHIFTS = ("shift", "flow_shift")
_FEWEST_NOT_LOWERED = 15  # steps from which on diffusers' multistep solvers end as they run, but for the last step
OWN_ORDER = 2  # of every solver, where nothing is given


def scheduler_settings_without_effect(
    name: str, known: Known, given: Mapping[str, Any], process: Process | None, needed: Iterable[str]
) -> Iterator[str]:
    """Why settings cannot be, or do nothing.

    Args:
        name: the class.
        given: what the user set, by name; null left out.
        process: what the model was trained for; None: not known.
        needed: what the class takes over from the model's own sampler, as ``models.sampling.needs`` has it.
    """
    for key, value in given.items():
        if key not in known.takes:
            yield f"scheduler.{key}={_text(value)}: {name} has no such argument; set it to null"
        elif key in known.ignores and value is not False:  # false is what it does in any case
            yield f"scheduler.{key}={_text(value)}: {name} never reads it; set it to null"
    algorithm = given.get("algorithm_type")
    if known.algorithms and algorithm not in (None, *known.algorithms):
        yield f"scheduler.algorithm_type={algorithm}: {name} has {', '.join(known.algorithms)}"
    if known.solves_both:
        yield from _overruled(given, process)
    dynamic = given.get("use_dynamic_shifting", "use_dynamic_shifting=True" in needed)
    for key in _SHIFTS if dynamic else ():
        if key in given and key in known.takes:
            yield (
                f"scheduler.{key}: it does nothing while the shift follows the size of the picture; set "
                "scheduler.use_dynamic_shifting=false"
            )


def _overruled(given: Mapping[str, Any], process: Process | None) -> Iterator[str]:
    """What a solver for both lays aside: it computes its sigmas by their spacing or for a flow, from nothing else."""
    spaced = next((key for key in SPACINGS if given.get(key)), None)
    by = f"scheduler.{spaced}=true" if spaced else "flow matching" if process == "flow" else None
    if by is not None and "timestep_spacing" in given:
        yield (
            f"scheduler.timestep_spacing={given['timestep_spacing']}: the sigmas are those of {by}, whatever it says; "
            "set it to null"
        )
    if "flow_shift" in given and (spaced or process == "diffusion"):
        why = f"the sigmas are those of {by}, which it does not shift" if spaced else "this model matches no flow"
        yield f"scheduler.flow_shift={given['flow_shift']:g}: {why}; set it to null"


def fewest_steps_of_solver(scheduler: Any, order: int) -> int:
    """Steps of a run that a solver of this order needs to reach it: it begins with lower ones, and may end so."""
    if hasattr(scheduler, "order_list"):  # DPMSolverSinglestepScheduler, which ends with one step of order 1
        return order + 1
    lowered = scheduler.config.get("lower_order_final") and len(scheduler.timesteps) < _FEWEST_NOT_LOWERED
    return 2 * order - 1 if lowered else order


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
