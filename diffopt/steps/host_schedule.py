"""A sampler whose schedule stays on the host, so that no step waits for the device; and the proof of it. Imports torch.

diffusers gives a step its timestep as one element of ``scheduler.timesteps``, which lies on the device. Samplers then
index a table by it, search the schedule for it, or compare it with zero, and each of that makes the host wait until
the device has caught up. Here the schedule is made and read on the host, and the denoiser is given a copy on the
device: what a sampler computes stays the same, wherever a pipeline begins.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffopt.errors import NoEffect

_ATTRIBUTE = "_diffopt_host_schedule"  # of the scheduler
_STEPS = 4  # of a rehearsal: enough for every order that a multistep sampler has


class HostSchedule:
    """Wraps the methods of one scheduler; :func:`of` finds it there."""

    def __init__(self, scheduler: Any) -> None:
        self.host: torch.Tensor | None = None  # timesteps
        self.shown: torch.Tensor | None = None  # the same on the device, which is what pipelines see
        self.lookups = 0  # in this call of the pipeline: timesteps that were read from the device
        self._scheduler = scheduler
        scheduler.set_timesteps = self._set_timesteps(scheduler.set_timesteps)
        for name in ("step", "scale_model_input"):
            if (method := getattr(scheduler, name, None)) is not None:
                setattr(scheduler, name, self._on_the_host(method))
        setattr(scheduler, _ATTRIBUTE, self)

    def _set_timesteps(self, inner: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(inner)

        @functools.wraps(inner)  # pipelines read its signature
        def set_timesteps(*args: Any, **kwargs: Any) -> None:
            call = signature.bind(*args, **kwargs)
            device = call.arguments.get("device") or "cpu"
            call.arguments["device"] = "cpu"
            inner(*call.args, **call.kwargs)
            self.host = self._scheduler.timesteps
            self.shown = self.host.to(device, copy=True)
            self._scheduler.timesteps = self.shown
            self.lookups = 0

        return set_timesteps

    def _on_the_host(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(inner)
        def called(*args: Any, **kwargs: Any) -> Any:
            self._scheduler.timesteps = self.host
            try:
                return inner(*map(self._found, args), **{name: self._found(value) for name, value in kwargs.items()})
            finally:
                self._scheduler.timesteps = self.shown

        return called

    def _found(self, value: Any) -> Any:
        """A timestep as it is on the host; anything else as it is.

        Pipelines pass one element of ``timesteps``, which is a view: its place in the storage says which one without
        asking the device.
        """
        if not isinstance(value, torch.Tensor) or value.ndim:
            return value
        assert self.host is not None, "set_timesteps comes first"
        assert self.shown is not None
        if value.untyped_storage()._cdata == self.shown.untyped_storage()._cdata:
            return self.host[value.storage_offset() - self.shown.storage_offset()]
        self.lookups += 1  # a copy from elsewhere: correct, but it waits
        return value.cpu()


def of(scheduler: Any) -> HostSchedule | None:
    """The host schedule of a scheduler that has one."""
    found: HostSchedule | None = getattr(scheduler, _ATTRIBUTE, None)
    return found


def rehearse(scheduler: Any, device: str) -> None:
    """Sample nothing for a few steps with a scheduler of the same config, where nothing may wait for the device.

    On CUDA the driver reports every synchronisation. Elsewhere tensors without data (``meta``) stand for those on a
    device: they cannot be read, and copies to and from them are seen. Raises NoEffect where a step waits.
    """
    probe = type(scheduler).from_config(scheduler.config)
    HostSchedule(probe)
    try:
        with _SyncsAreErrors() if device == "cuda" else _Watch() as watch:
            _sample(probe, "cuda" if device == "cuda" else "meta", watch.begin)
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise NoEffect(f"scheduler.sync_free: {type(scheduler).__name__} waits for the device: {reason}") from error


def _sample(scheduler: Any, device: str, begin: Callable[[], None]) -> None:
    told = inspect.signature(scheduler.set_timesteps).parameters
    scheduler.set_timesteps(_STEPS, device=device, **({"mu": 1.0} if "mu" in told else {}))
    sample = torch.zeros(1, 4, 8, 8, device=device)
    begin()
    for timestep in scheduler.timesteps:
        out = scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample
        if "old_pred_original_sample" in inspect.signature(scheduler.step).parameters:  # CogVideoX's own
            sample = scheduler.step(out, None, timestep, None, sample, return_dict=False)[0]
        else:
            sample = scheduler.step(out, timestep, sample, return_dict=False)[0]


class _SyncsAreErrors:
    def begin(self) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def __enter__(self) -> _SyncsAreErrors:
        self._before = torch.cuda.get_sync_debug_mode()
        return self

    def __exit__(self, *_: object) -> None:
        torch.cuda.set_sync_debug_mode(self._before)


class _Watch(TorchDispatchMode):
    """Raises RuntimeError for what would make the host wait if ``meta`` were a device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watching = False
        self._made = _MadeThere(self)

    def begin(self) -> None:
        self._watching = True

    def __enter__(self) -> _Watch:
        self._made.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._made.__exit__(*error)

    def fail(self, what: str) -> None:
        if self._watching:
            raise RuntimeError(what)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = (_devices(values) for values in ((args, kwargs), out))
        if "copy" in func.name() and "cpu" in given and "meta" in made:
            self.fail(f"{func.name()} copies from the host")
        if "meta" in given and "cpu" in made:
            self.fail(f"{func.name()} reads from the device")
        return out


class _MadeThere(TorchFunctionMode):  # type: ignore[no-untyped-call]
    """torch.tensor copies its numbers to the device, which no dispatch shows."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and "meta" in _devices(out) and not isinstance(args[0], torch.Tensor):
            self._watch.fail(f"{func.__name__} copies from the host")
        return out


def _devices(values: Any) -> set[str]:
    return {leaf.device.type for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)}
