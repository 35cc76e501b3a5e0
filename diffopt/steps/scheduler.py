"""The sampler, and the rule that a sampling step never makes the host wait for the device."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from diffopt.errors import NoEffect, Refusal
from diffopt.step import Effect, Order, Site, Step, register

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

# copies sigmas to the device and solves a small linear system there in every step (diffusers 0.42, multistep_uni_*)
_ALWAYS_SYNCS = frozenset({"UniPCMultistepScheduler"})


@register("scheduler")
class Sampler(Step):
    """Replace the sampler by diffusers' ``class_name``, built from the config of the model's own scheduler.

    The nullable fields are constructor arguments; null keeps what the model's config says. ``sync_free`` promises that
    no ``step`` waits for the device: sigmas stay on the host, the begin index is set (the first step would search the
    timesteps on the device for it), and samplers that index a host table by timestep are given it as a host number.
    """

    order: ClassVar[Order] = Order.SCHEDULE
    kind: Literal["sampler"]
    class_name: str
    sync_free: bool
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None
    use_karras_sigmas: bool | None
    algorithm_type: str | None
    solver_order: Annotated[int, Field(ge=1, le=3)] | None
    clip_sample: bool | None
    skip_prk_steps: bool | None

    def problems(self, site: Site) -> tuple[str, ...]:
        if self.sync_free and self.class_name in _ALWAYS_SYNCS:
            return (f"scheduler.sync_free=true: {self.class_name} waits for the device in every step; set it to false",)
        return ()

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        old: Any = pipe.scheduler
        cls = {c.__name__: c for c in old.compatibles}.get(self.class_name)
        if cls is None:
            name = type(old).__name__
            raise Refusal(f"scheduler.class_name={self.class_name}: not compatible with this model's {name}")
        self._check_arguments(cls, old.config.get("prediction_type"))
        scheduler = cls.from_config(old.config, **self._arguments())
        if self.sync_free:
            _free_of_syncs(scheduler)
        pipe.scheduler = scheduler

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        scheduler: Any = pipe.scheduler
        if (name := type(scheduler).__name__) != self.class_name:
            raise NoEffect(f"scheduler.class_name={self.class_name}: the pipeline samples with {name}")
        for key, value in self._arguments().items():
            if scheduler.config.get(key) != value:
                raise NoEffect(f"scheduler.{key}={value}: the sampler has {scheduler.config.get(key)}")
        steps = scheduler.num_inference_steps
        if not steps:
            raise NoEffect(f"scheduler.class_name={self.class_name}: the pipeline ran no step with it")
        if self.sync_free:
            _check_free_of_syncs(scheduler, site.hardware.device)
        summary = f"{steps} steps of {self.class_name}" + (", no step waits for the device" if self.sync_free else "")
        return Effect(summary, {"steps": steps, "denoiser_calls": len(scheduler.timesteps)})

    def _arguments(self) -> dict[str, Any]:
        given = self.model_dump(exclude={"kind", "class_name", "sync_free"})
        return {name: value for name, value in given.items() if value is not None}

    def _check_arguments(self, cls: Any, prediction: str | None) -> None:
        known = inspect.signature(cls).parameters
        if unknown := [name for name in self._arguments() if name not in known]:
            raise Refusal(f"scheduler.{unknown[0]}: {self.class_name} has no such argument")
        choices = get_args(inspect.get_annotations(cls.__init__, eval_str=True).get("prediction_type"))
        if prediction is not None and choices and prediction not in choices:
            raise Refusal(f"scheduler.class_name={self.class_name}: it cannot sample {prediction} prediction")


def _free_of_syncs(scheduler: Any) -> None:
    """Wrap the methods of this one object; ``set_timesteps`` resets the begin index in each call of the pipeline."""
    if hasattr(scheduler, "set_begin_index"):
        _begin_at_zero(scheduler)
    else:
        _take_timesteps_from_the_host(scheduler)


def _begin_at_zero(scheduler: Any) -> None:
    """Text-to-image begins at index 0; pipelines that begin later say so themselves, after ``set_timesteps``."""
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)
    def set_timesteps_and_begin(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        if scheduler.begin_index is None:
            scheduler.set_begin_index(0)

    scheduler.set_timesteps = set_timesteps_and_begin


def _take_timesteps_from_the_host(scheduler: Any) -> None:
    """Give ``step`` the timestep as an int.

    Pipelines pass one element of ``scheduler.timesteps``, which is a view: its offset in the storage says which one
    without asking the device, and a host copy says its value.
    """
    set_timesteps, step = scheduler.set_timesteps, scheduler.step

    @functools.wraps(set_timesteps)
    def set_timesteps_and_copy(num_inference_steps: int, *args: Any, **kwargs: Any) -> None:
        set_timesteps(num_inference_steps, *args, **kwargs)
        scheduler.host_timesteps = scheduler.timesteps.tolist()
        scheduler.device_lookups = 0

    @functools.wraps(step)
    def step_with_host_timestep(model_output: torch.Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        return step(model_output, _on_the_host(scheduler, timestep), *args, **kwargs)

    scheduler.set_timesteps, scheduler.step = set_timesteps_and_copy, step_with_host_timestep


def _on_the_host(scheduler: Any, timestep: torch.Tensor | int) -> int:
    if isinstance(timestep, int):
        return timestep
    table: torch.Tensor = scheduler.timesteps
    if timestep.untyped_storage().data_ptr() == table.untyped_storage().data_ptr():
        return int(scheduler.host_timesteps[timestep.storage_offset() - table.storage_offset()])
    scheduler.device_lookups += 1  # a copy from elsewhere: correct, but it waits; verify reports it
    return int(timestep)


def _check_free_of_syncs(scheduler: Any, device: str) -> None:
    """Raise NoEffect where the promise does not hold for the call that was just made."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and sigmas.device.type != "cpu":
        raise NoEffect(f"scheduler.sync_free: the sigmas are on {sigmas.device}")
    if hasattr(scheduler, "set_begin_index"):
        if scheduler.begin_index is None:
            raise NoEffect("scheduler.sync_free: the begin index is not set")
    elif getattr(scheduler, "device_lookups", None) != 0:
        raise NoEffect("scheduler.sync_free: timesteps were read from the device")
    if device == "cuda":
        _probe(scheduler)


def _probe(scheduler: Any) -> None:
    """Sample nothing for a few steps while CUDA reports every synchronisation as an error."""
    import torch

    probe = type(scheduler).from_config(scheduler.config)
    _free_of_syncs(probe)
    probe.set_timesteps(4, device="cuda")
    sample = torch.zeros(1, 4, 8, 8, device="cuda")
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for timestep in probe.timesteps:
            sample = probe.step(probe.scale_model_input(sample, timestep), timestep, sample).prev_sample
    except RuntimeError as error:
        raise NoEffect(f"scheduler.sync_free: {type(scheduler).__name__} waits for the device: {error}") from error
    finally:
        torch.cuda.set_sync_debug_mode(before)
