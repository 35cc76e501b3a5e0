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
        for name, method in self._methods().items():
            inner = getattr(scheduler, name)
            # neither a closure nor a bound method of the original, so that a copied scheduler runs its own schedule
            wrapped: Any = functools.update_wrapper(functools.partial(method, self, inner), inner)
            if name == "set_timesteps":
                wrapped.__signature__ = _with(inspect.signature(inner), _GIVEN)  # pipelines read it
            setattr(scheduler, name, wrapped)
        setattr(scheduler, _ATTRIBUTE, self)

    def _methods(self) -> dict[str, Callable[..., Any]]:
        """What is put in the place of each method of the scheduler; called with this object and the method itself."""
        found: dict[str, Callable[..., Any]] = {"set_timesteps": Schedule._set_timesteps, "step": Schedule._step}
        if self._on_the_host and hasattr(self._scheduler, "scale_model_input"):
            found["scale_model_input"] = Schedule._with_host_timesteps
        return found

    def _set_timesteps(self, inner: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        import numpy as np

        taken = inspect.signature(inner)
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

    def _step(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.iterations += 1
        return self._with_host_timesteps(inner, *args, **kwargs) if self._on_the_host else inner(*args, **kwargs)

    def _with_host_timesteps(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._scheduler.timesteps is not self._shown:  # a pipeline put a schedule of its own in its place
            self.lookups += 1
            return inner(*args, **kwargs)
        self._scheduler.timesteps = self._host
        try:
            return inner(*map(self._found, args), **{name: self._found(value) for name, value in kwargs.items()})
        finally:
            self._scheduler.timesteps = self._shown

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
