"""The sampler, and the promise that no sampling step makes the host wait for the device."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from diffopt.errors import NoEffect, Refusal
from diffopt.machine.packages import how_to_install
from diffopt.models import classes
from diffopt.models.classes import Process, SamplerCalls
from diffopt.models.sampling import dropped_sampler_needs_of_model, sampler_needs_of_model
from diffopt.schema.step import Effect, Order, Requirements, Site, Step, Trait, register
from diffopt.schema.words import did_you_mean
from diffopt.steps.scheduler.host_schedule import Schedule, host_schedule_of_scheduler
from diffopt.steps.scheduler.settings import OWN_ORDER, fewest_steps_of_solver, scheduler_settings_without_effect
from diffopt.steps.scheduler.support import (
    DISTILLED,
    NAMES,
    OTHERS,
    SAMPLERS,
    SPACINGS,
    SPARSE,
    Known,
    sampler_lacks_in_words,
    scheduler_process_of_config,
    scheduler_process_of_model,
)

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_SUITED = {
    "flow": "scheduler=flow_euler and the others that begin with flow_",
    "diffusion": "scheduler=euler and others without flow_",
    "edm": "EDMEulerScheduler and EDMDPMSolverMultistepScheduler",
}


@register("scheduler")
class Sampler(Step):
    """Replace the sampler by diffusers' ``class_name``, built from the config of the model's own scheduler.

    The nullable fields are constructor arguments; null keeps what the model's config says, and on a model that matches
    a flow its shift, by whatever name the class has for it. What would sample something else than the model was
    trained for is refused, since it ends in noise and not in an error, and so is what changes nothing: a setting that
    the class does not read, or that another one overrules. ``sync_free`` promises that no ``step`` waits
    for the device (see ``host_schedule``).
    """

    order: ClassVar[Order] = Order.SCHEDULE
    kind: Literal["sampler"]
    class_name: str
    sync_free: bool
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None
    use_karras_sigmas: bool | None
    use_exponential_sigmas: bool | None
    use_beta_sigmas: bool | None
    use_flow_sigmas: bool | None
    flow_shift: Annotated[float, Field(gt=0)] | None
    shift: Annotated[float, Field(gt=0)] | None
    use_dynamic_shifting: bool | None
    algorithm_type: str | None
    solver_order: Annotated[int, Field(ge=1, le=3)] | None
    final_sigmas_type: Literal["zero", "sigma_min"] | None
    clip_sample: bool | None
    skip_prk_steps: bool | None

    @model_validator(mode="after")
    def _one_spacing(self) -> Sampler:
        if len(chosen := [name for name in SPACINGS if getattr(self, name)]) > 1:
            raise ValueError(f"scheduler.{' and scheduler.'.join(chosen)}: sigmas are spaced in one way; choose one")
        return self

    @property
    def traits(self) -> frozenset[Trait]:
        known = SAMPLERS.get(self.class_name)
        return frozenset({Trait.CALLS_TWICE} if known is not None and known.twice else ())

    def requires(self) -> Requirements:
        known = SAMPLERS.get(self.class_name)
        scipy = ("scipy",) if self.use_beta_sigmas else ()
        return Requirements(packages=tuple(dict.fromkeys((*(known.packages if known else ()), *scipy))))

    def problems(self, site: Site) -> tuple[str, ...]:
        task = site.model.task if site.workload is None else site.workload.task
        pipeline = getattr(site.model.pipelines, task) or getattr(site.model.pipelines, site.model.task)
        process, calls = scheduler_process_of_model(site), classes.pipeline_class_record(str(pipeline)).sampler
        reasons = self._reasons(process, str(pipeline), _calls_of_site(calls, site), site.model.sampler_needs)
        return (*reasons, *self._too_many_steps(site))

    def apply(self, pipe: DiffusionPipeline, site: Site) -> None:
        old: Any = pipe.scheduler
        name, pipeline = type(old).__name__, type(pipe).__name__
        process = scheduler_process_of_config(name, old.config)
        calls = classes.pipeline_class_record(pipeline).sampler
        if calls is None:  # sigmas that it gives after all are refused when it does
            seeded = hasattr(pipe, "prepare_extra_step_kwargs")
            calls = SamplerCalls(sigmas="never", generator=seeded, asks=(), asks_in_one_step=())
        if reasons := self._reasons(process, pipeline, _calls_of_site(calls, site), sampler_needs_of_model(old.config)):
            raise Refusal("; ".join(reasons))
        cls = self._class(old, process)
        arguments = self._arguments(old.config, _constructor_parameters(cls), process)
        self._check(cls, old.config, arguments)
        try:
            scheduler = cls.from_config(old.config, **arguments)
        except (ValueError, NotImplementedError, ImportError) as error:
            raise Refusal(f"scheduler.class_name={self.class_name}: {' '.join(str(error).split())}") from error
        Schedule(scheduler, on_the_host=self.sync_free, pipeline=pipeline)
        pipe.scheduler = scheduler

    def verify(self, pipe: DiffusionPipeline, site: Site) -> Effect:
        scheduler: Any = pipe.scheduler
        if (name := type(scheduler).__name__) != self.class_name:
            raise NoEffect(f"scheduler.class_name={self.class_name}: the pipeline samples with {name}")
        for key, value in self._given.items():
            if scheduler.config.get(key) != value:
                raise NoEffect(f"scheduler.{key}={value}: the sampler has {scheduler.config.get(key)}")
        schedule = host_schedule_of_scheduler(scheduler)
        if schedule is None or not schedule.iterations:
            raise NoEffect(f"scheduler.class_name={self.class_name}: the pipeline ran no step with it")
        if self.sync_free:
            if schedule.lookups:
                raise NoEffect(f"scheduler.sync_free: {schedule.lookups} timesteps were read from the device")
            from diffopt.steps.scheduler.rehearsal import rehearse_scheduler  # which imports torch

            rehearse_scheduler(scheduler, site.hardware.device)
        steps, iterations = scheduler.num_inference_steps, schedule.iterations
        summary = f"{iterations} steps of {self.class_name}" + (", none waits for the device" if self.sync_free else "")
        return Effect(summary + self._lowered(scheduler, iterations), {"steps": steps, "iterations": iterations})

    def _lowered(self, scheduler: Any, iterations: int) -> str:
        """What is told of a run that is too short for the order. Raises NoEffect where a higher one was asked for."""
        order = self.solver_order or 1
        if iterations >= (fewest := fewest_steps_of_solver(scheduler, order)):
            return ""
        if order > OWN_ORDER:
            raise NoEffect(
                f"scheduler.solver_order={order}: none of {iterations} steps reaches that order; take {fewest} steps "
                f"or more, or scheduler.solver_order={OWN_ORDER}"
            )
        return f", too few to reach order {order}"

    @property
    def _given(self) -> dict[str, Any]:
        given = self.model_dump(exclude={"kind", "class_name", "sync_free"})
        return {name: value for name, value in given.items() if value is not None}

    @property
    def _noisy(self) -> bool:
        known = SAMPLERS.get(self.class_name)
        return (known is not None and known.noise) or (self.algorithm_type or "").startswith("sde-")

    def _reasons(
        self, process: Process | None, pipeline: str, calls: SamplerCalls | None, needed: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Why this sampler cannot sample ``process``, or not in this pipeline, or drops what is ``needed`` of the
        model's own; ``None``: not known."""
        known = SAMPLERS.get(self.class_name)
        if known is None and self.class_name not in OTHERS:
            meant = did_you_mean(self.class_name, [*SAMPLERS, *OTHERS]).strip()
            told = f" ({meant})" if meant else ""
            return (f"scheduler.class_name={self.class_name}: diffusers has no such sampler{told}",)
        if known is None:
            return ()
        if misfits := tuple(self._misfits(known, process, pipeline)):
            return misfits
        dropped = dropped_sampler_needs_of_model(needed, known.takes)
        return (
            *self._miscalls(known, pipeline, calls),
            *([self._drops(dropped)] if dropped else []),
            *scheduler_settings_without_effect(self.class_name, known, self._given, process, needed),
            *self._broken_promises(known),
        )

    def _too_many_steps(self, site: Site) -> Iterator[str]:
        known = SAMPLERS.get(self.class_name)
        if (
            known is not None
            and known.gives >= SPARSE
            and site.workload is not None
            and site.workload.steps > DISTILLED
        ):
            yield (
                f"scheduler.class_name={self.class_name}: it takes its steps out of the {DISTILLED} that a model was "
                f"distilled from, and workload.steps is {site.workload.steps}"
            )

    def _drops(self, dropped: list[str]) -> str:
        have = f"it has no {', no '.join(dropped)}, which belongs to this model's noise schedule"
        return f"scheduler.class_name={self.class_name}: {have}"

    def _misfits(self, known: Known, process: Process | None, pipeline: str) -> Iterator[str]:
        """What it would sample otherwise than the model was trained for."""
        said = f"scheduler.class_name={self.class_name}"
        if not pipeline.startswith(known.pipelines):
            yield f"{said}: it is made for {known.pipelines}, {pipeline} calls it otherwise"
        if process is not None and process not in known.process:
            can = " or ".join(NAMES[one] for one in sorted(known.process))
            yield f"{said} samples {can}, but this model is made for {NAMES[process]}, as are {_SUITED[process]}"
        elif process is not None and known.solves_both:
            yield from self._contradictions(process)

    def _miscalls(self, known: Known, pipeline: str, calls: SamplerCalls | None) -> Iterator[str]:
        said = f"scheduler.class_name={self.class_name}"
        if calls is None:
            return
        spared = calls.sigmas == "never" or (calls.sigmas == "unless_flow" and known.solves_both)
        if not known.sigmas and not spared:
            yield f"{said}: {pipeline} gives its sampler sigmas, which this one does not take"
        if self._noisy and not calls.generator:
            yield f"{said}: it draws noise in every step, and {pipeline} gives it no generator, so that no seed holds"
        if lacking := [asked for asked in calls.asks if asked not in known.gives]:
            yield f"{said}: {pipeline} {sampler_lacks_in_words(lacking, calls)}"

    def _broken_promises(self, known: Known) -> Iterator[str]:
        said = f"scheduler.sync_free=true: {self.class_name}"
        if self.sync_free and known.waits:
            yield f"{said} waits for the device in every step; set it to false"
        elif self.sync_free and self._noisy:
            yield f"{said} copies noise of the seed's generator from the host in every step; set it to false"

    def _contradictions(self, process: Process) -> Iterator[str]:
        """Settings of a solver for both that sample something else than the model was trained for."""
        flow = process == "flow"
        if self.use_flow_sigmas is not None and self.use_flow_sigmas != flow:
            yield f"scheduler.use_flow_sigmas={str(not flow).lower()}: this model is made for {NAMES[process]}"
        spaced = [name for name in SPACINGS if getattr(self, name)]
        if flow and spaced and (self.class_name, spaced) != ("UniPCMultistepScheduler", ["use_karras_sigmas"]):
            yield (
                f"scheduler.{spaced[0]}=true: {self.class_name} would sample diffusion with it, but this model is made "
                "for flow matching; take scheduler=flow_euler"
            )

    def _class(self, old: Any, process: Process | None) -> Any:
        """diffusers' class. Raises Refusal for one that neither diffopt nor the model's own sampler knows."""
        import diffusers

        known = self.class_name in SAMPLERS and process is not None
        cls = getattr(diffusers, self.class_name, None) if known else None
        cls = cls or {c.__name__: c for c in old.compatibles}.get(self.class_name)
        if hasattr(cls, "_backends"):  # diffusers' stand-in for a class whose packages are missing
            raise Refusal(f"scheduler.class_name={self.class_name}: {how_to_install(self.requires().packages)}")
        if cls is None:
            name = type(old).__name__
            raise Refusal(f"scheduler.class_name={self.class_name}: not compatible with this model's {name}")
        return cls

    def _arguments(
        self, config: Mapping[str, Any], parameters: Mapping[str, Any], process: Process | None
    ) -> dict[str, Any]:
        """Constructor arguments beside the model's config: those given, and what a flow is called in this class."""
        arguments = dict(self._given)
        if process == "flow":
            shift = config.get("flow_shift") if config.get("use_flow_sigmas") else config.get("shift")
            own = {"prediction_type": "flow_prediction", "flow_shift": shift, "shift": shift}
            if "use_flow_sigmas" in parameters:
                own["use_flow_sigmas"] = True
            known = {key: value for key, value in own.items() if key in parameters and value is not None}
            arguments = {**known, **arguments}
        return arguments

    def _check(self, cls: Any, config: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
        """Raise Refusal for settings that the class lacks, or that would do nothing."""
        said, parameters = f"scheduler.class_name={self.class_name}", _constructor_parameters(cls)
        if unknown := [name for name in self._given if name not in parameters]:
            raise Refusal(f"scheduler.{unknown[0]}: {self.class_name} has no such argument")
        if dropped := dropped_sampler_needs_of_model(sampler_needs_of_model(config), parameters):
            raise Refusal(self._drops(dropped))
        prediction = arguments.get("prediction_type", config.get("prediction_type"))
        choices = get_args(inspect.get_annotations(cls.__init__, eval_str=True).get("prediction_type"))
        if prediction is not None and choices and prediction not in choices:
            raise Refusal(f"{said}: it cannot sample {prediction} prediction")


def _calls_of_site(calls: SamplerCalls | None, site: Site) -> SamplerCalls | None:
    """How the pipeline calls its sampler with the workload's number of steps."""
    if calls is None or site.workload is None or site.workload.steps > 1:
        return calls
    return replace(calls, asks=(*calls.asks, *calls.asks_in_one_step))


def _constructor_parameters(cls: Any) -> Mapping[str, Any]:
    return inspect.signature(cls).parameters
