"""Whether a sampler with its schedule on the host makes the host wait: a few steps of it with no picture.

Imports torch, since it watches torch's functions by classes of torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffopt.errors import NoEffect
from diffopt.steps.scheduler.host_schedule import Schedule

_STEPS = 4  # of a rehearsal: more than the order of any multistep sampler
# in what CUDA's debug mode says, what tensors without data say that are asked for it, and what is raised below
_WAITING = ("synchronizing", "meta tensor", "register_meta", "copies from the host", "reads from the device")


def rehearse_scheduler(scheduler: Any, device: str) -> None:
    """Sample nothing for a few steps with a scheduler of the same config, where nothing may wait for the device.

    On CUDA torch reports every synchronisation. Elsewhere tensors without data (``meta``) stand for those on a device:
    they cannot be read, and copies to them are seen. Raises NoEffect where a step waits.
    """
    probe = type(scheduler).from_config(scheduler.config)
    Schedule(probe, on_the_host=True)
    learned = str(probe.config.get("variance_type")).startswith("learned")
    # those samplers that split a variance off split it after three channels
    sample = torch.zeros(1, 3 if learned else 4, 8, 8, device="cuda" if device == "cuda" else "meta")
    mu = {"mu": 1.0} if probe.config.get("use_dynamic_shifting") else {}
    probe.set_timesteps(_STEPS, device=sample.device, **mu)
    try:
        with _waiting_is_an_error(device):
            _sample(probe, sample, twice=learned)
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        if not any(word in reason for word in _WAITING):
            raise
        raise NoEffect(f"scheduler.sync_free: {type(scheduler).__name__} waits for the device: {reason}") from error


def _sample(scheduler: Any, sample: torch.Tensor, *, twice: bool) -> None:
    """As pipelines do, which give the noise a generator on the host; ``twice``: with a variance beside the noise."""
    taken = inspect.signature(scheduler.step).parameters
    given: dict[str, Any] = {"generator": torch.Generator("cpu")} if "generator" in taken else {}
    for timestep in scheduler.timesteps:
        out = scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample
        out = torch.cat([out, out], dim=1) if twice else out
        between = (None, timestep, None) if "old_pred_original_sample" in taken else (timestep,)
        sample = scheduler.step(out, *between, sample, return_dict=False, **given)[0]


@contextmanager
def _waiting_is_an_error(device: str) -> Iterator[None]:
    """Raise RuntimeError, or NotImplementedError, where the host would wait."""
    if device != "cuda":
        with _NumbersWatch(), _CopiesWatch():  # type: ignore[no-untyped-call]
            yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class _CopiesWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises where a tensor without data would be copied to the device, or read there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = _devices((args, kwargs)), _devices(out)
        if "copy" in func.name() and "cpu" in given and "meta" in made:
            raise RuntimeError(f"{func.name()} copies from the host")
        if "meta" in given and "cpu" in made:
            raise RuntimeError(f"{func.name()} reads from the device")
        return out


class _NumbersWatch(TorchFunctionMode):  # type: ignore[no-untyped-call]
    """The same for numbers that become a tensor on the device, whose copy no dispatch shows."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and "meta" in _devices(out) and not _devices(args):
            raise RuntimeError(f"torch.{func.__name__} copies from the host")
        return out


def _devices(values: Any) -> set[str]:
    return {leaf.device.type for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)}
