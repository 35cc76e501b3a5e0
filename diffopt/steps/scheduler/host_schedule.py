"""A sampler whose calls are counted and whose schedule may stay on the host, so that no step waits for the device.

diffusers gives a step its timestep as one element of ``scheduler.timesteps``, which lies on the device. Samplers then
index a table by it, search the schedule for it, or compare it with zero, and each of that makes the host wait until
the device has caught up. Here the schedule is made and read on the host, and the denoiser is given a copy on the
device: what a sampler computes stays the same, wherever a pipeline begins.

Torch and NumPy are imported by the functions that need them, so that a plan needs none of them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from diffopt.errors import Refusal

if TYPE_CHECKING:
    import torch

_ATTRIBUTE = "_diffopt_schedule"  # of the scheduler
_GIVEN = ("sigmas", "timesteps", "mu")  # what pipelines may give to set_timesteps, beside steps and device


class Schedule:
    """Wraps the methods of one scheduler object; :func:`host_schedule_of_scheduler` finds it there.

    Args:
        on_the_host: keep the schedule on the host.
        pipeline: name of the class that calls the scheduler, for messages.
    """

    def __init__(self, scheduler: Any, *, on_the_host: bool, pipeline: str = "the pipeline") -> None:
        self.iterations = 0  # steps in the last call of the pipeline
        self.lookups = 0  # of these, timesteps that had to be read from the device
        self._scheduler, self._on_the_host, self._pipeline = scheduler, on_the_host, pipeline
        self._host: torch.Tensor | None = None  # timesteps
        self._shown: torch.Tensor | None = None  # the same on the device, which is what pipelines see
        scheduler.set_timesteps = self._set_timesteps(scheduler.set_timesteps)
        scheduler.step = self._step(scheduler.step)
        if on_the_host and hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input = self._with_host_timesteps(scheduler.scale_model_input)
        setattr(scheduler, _ATTRIBUTE, self)

    def _set_timesteps(self, inner: Callable[..., None]) -> Callable[..., None]:
        taken = inspect.signature(inner)

        @functools.wraps(inner)
        def set_timesteps(*args: Any, **kwargs: Any) -> None:
            import numpy as np

            self._check(taken, kwargs)
            call = taken.bind(*args, **kwargs)
            device = call.arguments.get("device") or "cpu"
            if isinstance(sigmas := call.arguments.get("sigmas"), list):  # Z-Image's, with which UniPC computes
                call.arguments["sigmas"] = np.array(sigmas)
            if self._on_the_host:
                call.arguments["device"] = "cpu"
            inner(*call.args, **call.kwargs)
            self.iterations = self.lookups = 0
            if self._on_the_host:
                self._host = self._scheduler.timesteps
                self._shown = self._scheduler.timesteps = self._host.to(device, copy=True)

        set_timesteps.__signature__ = _with(taken, _GIVEN)  # type: ignore[attr-defined]  # pipelines read it
        return set_timesteps

    def _check(self, taken: inspect.Signature, given: dict[str, Any]) -> None:
        """Refuse what this class does not take. ``mu`` means something with dynamic shifting alone; several pipelines
        give it in any case, and several classes assert that it means something."""
        name = type(self._scheduler).__name__
        if not self._scheduler.config.get("use_dynamic_shifting"):
            given.pop("mu", None)
        elif given.get("mu") is None:
            raise Refusal(
                f"scheduler.class_name={name}: use_dynamic_shifting wants a shift from the size of the picture, and "
                f"{self._pipeline} gives none; set scheduler.use_dynamic_shifting=false"
            )
        if unknown := [key for key, value in given.items() if key not in taken.parameters and value is not None]:
            raise Refusal(
                f"scheduler.class_name={name}: {self._pipeline} gives its sampler {', '.join(unknown)}, which this one "
                "does not take"
            )
        for key in given.keys() - taken.parameters:
            del given[key]

    def _step(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        called = self._with_host_timesteps(inner) if self._on_the_host else inner

        @functools.wraps(inner)
        def step(*args: Any, **kwargs: Any) -> Any:
            self.iterations += 1
            return called(*args, **kwargs)

        return step

    def _with_host_timesteps(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(inner)
        def called(*args: Any, **kwargs: Any) -> Any:
            if self._scheduler.timesteps is not self._shown:  # a pipeline put a schedule of its own in its place
                self.lookups += 1
                return inner(*args, **kwargs)
            self._scheduler.timesteps = self._host
            try:
                return inner(*map(self._found, args), **{name: self._found(value) for name, value in kwargs.items()})
            finally:
                self._scheduler.timesteps = self._shown

        return called

    def _found(self, value: Any) -> Any:
        """A timestep as it is on the host; anything else as it is.

        What pipelines pass is a view of ``timesteps``: its place in the storage says which one without asking the
        device.
        """
        import torch

        if not isinstance(value, torch.Tensor) or value.ndim:
            return value
        assert self._host is not None, "set_timesteps comes first"
        assert self._shown is not None
        if value.untyped_storage()._cdata == self._shown.untyped_storage()._cdata:
            return self._host[value.storage_offset() - self._shown.storage_offset()]
        self.lookups += 1  # a copy from elsewhere: correct, but it waits
        return value.cpu()


def host_schedule_of_scheduler(scheduler: Any) -> Schedule | None:
    """What was wrapped around a scheduler."""
    found: Schedule | None = getattr(scheduler, _ATTRIBUTE, None)
    return found


def _with(signature: inspect.Signature, names: tuple[str, ...]) -> inspect.Signature:
    """The signature with these as further keywords, unless it has them."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [inspect.Parameter(name, keyword, default=None) for name in names if name not in signature.parameters]
    own = list(signature.parameters.values())
    rest = [parameter for parameter in own if parameter.kind is inspect.Parameter.VAR_KEYWORD]
    return signature.replace(parameters=[*(p for p in own if p not in rest), *more, *rest])
