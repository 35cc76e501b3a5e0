"""Installing diffusers' caches where they meet compiled blocks and offloading, and counting what they skip.

Torch and diffusers are imported by the functions that need them, so that a plan needs none of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffopt.errors import NoEffect, Refusal
from diffopt.schema.step import Effect, Site
from diffopt.steps.components import refuse_copies

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn


@dataclass
class Tally:
    """What happened in one call of the pipeline."""

    called: int = 0  # calls of counted modules
    computed: int = 0  # those that ran the module
    through: Counter[Hooked] = field(default_factory=Counter)  # calls by hook, also of the denoiser's own
    contexts: set[str] = field(default_factory=set)  # names that the pipeline gave to calls of the denoiser
    ratios: dict[str, list[float]] = field(default_factory=dict)  # of calls by that name, where they are measured


@dataclass(frozen=True)
class Hooked:
    """One hook of diffusers on one module."""

    module: Any
    name: str
    hook: Any

    @property
    def in_place(self) -> bool:
        registry = getattr(self.module, "_diffusers_hook", None)
        return registry is not None and registry.hooks.get(self.name) is self.hook


class Watch:
    """The hooks of a cache, and what they did in each call of the pipeline.

    diffusers resets caches at the end of a call (``maybe_free_model_hooks``); that closes a tally. Hooks on the
    denoiser as a whole are not counted among what may be skipped: they compute in every step. A call that did not come
    to its end, since it was interrupted or failed, left its state, which the next one must not go on from.
    """

    def __init__(self, hooked: list[Hooked], pipe: Any, denoiser: Any) -> None:
        self.hooked, self._pipe, self._denoiser = hooked, pipe, denoiser
        self._schedule: Any = None  # of the call: the sampler makes new timesteps for each
        self.counted = [one for one in hooked if one.module is not denoiser]
        self.current = Tally()
        self.last: Tally | None = None
        self._entries: dict[Hooked, Callable[..., Any]] = {}  # what each hook's chain must still call
        for one in hooked:
            one.hook.fn_ref.pre_forward = self._beginning(one.hook.fn_ref.pre_forward)
            self._enter(one, self._passing(one, one.hook.fn_ref.forward))
        for one in self.counted:
            one.hook.fn_ref.original_forward = self._computing(one.hook.fn_ref.original_forward)
        # once per call; a hook is reset twice where its module is also seen through a compiled wrapper
        vars(denoiser)["_reset_stateful_cache"] = self._closing(denoiser._reset_stateful_cache)

    @property
    def gone(self) -> int:
        """Hooks that are off, or stay and are undone: to remove the hook beneath overwrites what they call."""
        return sum(not one.in_place or one.hook.fn_ref.forward is not self._entries[one] for one in self.hooked)

    def note_contexts(self, *, needed: bool) -> None:
        """Note under which names the denoiser is called. With ``needed``, a call without one raises Refusal."""
        first = self.counted[0]
        forward, manager = first.hook.fn_ref.forward, first.hook.state_manager

        def noting(*args: Any, **kwargs: Any) -> Any:
            context = manager._context
            if context is None and needed:
                raise Refusal(
                    "the pipeline names no cache context, by which this cache keeps the calls of a step apart"
                )
            self.current.contexts.add("inference" if context is None else context.name)  # as MagCache then names it
            return forward(*args, **kwargs)

        self._enter(first, noting)

    def refuse_second_calls(self, pipe: Any) -> None:
        """Raise Refusal when the denoiser is called twice in a step: a cache without contexts would mix the two."""
        first = self.counted[0]
        forward, last = first.hook.fn_ref.forward, None

        def checking(*args: Any, **kwargs: Any) -> Any:
            nonlocal last
            if pipe.current_timestep is last:
                raise Refusal(f"{type(pipe).__name__} calls the denoiser twice in a step, and this cache mixes the two")
            last = pipe.current_timestep
            return forward(*args, **kwargs)

        self._enter(first, checking)

    def _enter(self, one: Hooked, forward: Callable[..., Any]) -> None:
        one.hook.fn_ref.forward = self._entries[one] = forward

    def _passing(self, one: Hooked, forward: Callable[..., Any]) -> Callable[..., Any]:
        counts = one in self.counted

        def passing(*args: Any, **kwargs: Any) -> Any:
            self.current.through[one] += 1
            self.current.called += counts
            return forward(*args, **kwargs)

        return passing

    def _beginning(self, pre_forward: Callable[..., Any]) -> Callable[..., Any]:
        def beginning(*args: Any, **kwargs: Any) -> Any:
            self._forget_unended_call()
            return pre_forward(*args, **kwargs)

        return beginning

    def _forget_unended_call(self) -> None:
        """Reset the cache where a call begins and the one before it was never closed."""
        from diffusers.hooks.hooks import _set_cache_context

        schedule = self._pipe.scheduler.timesteps
        if schedule is self._schedule:
            return
        self._schedule = schedule
        if self.current.through:
            manager = getattr(self.hooked[-1].hook, "state_manager", None)
            context = None if manager is None else manager._context
            type(self._denoiser)._reset_stateful_cache(self._denoiser)
            _set_cache_context(self._denoiser, context)  # which a reset forgets too, in the midst of it
            self.current = Tally()

    def _computing(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def computing(*args: Any, **kwargs: Any) -> Any:
            self.current.computed += 1
            return forward(*args, **kwargs)

        return computing

    def _closing(self, reset: Callable[..., Any]) -> Callable[..., Any]:
        def closing(*args: Any, **kwargs: Any) -> Any:
            if self.current.through or self.last is not None:
                self.last, self.current = self.current, Tally()
            return reset(*args, **kwargs)

        return closing


def install_cache(pipe: DiffusionPipeline, site: Site, config: Any, *, key: str) -> Watch:
    """Enable the cache on the denoiser and watch it.

    A block that is compiled in place gets the cache around its compiled call, since a decision inside a graph breaks
    it. A hook inside a compiled block breaks the graph there, by a function that dynamo leaves alone: traced, its
    counters would compile anew in every step. Raises Refusal where the denoiser cannot take this cache.
    """
    from diffusers import CacheMixin
    from torch._dynamo.eval_frame import OptimizedModule

    denoiser: Any = getattr(pipe, site.model.denoiser)
    if not isinstance(denoiser, CacheMixin):
        raise Refusal(f"{key}: {type(denoiser).__name__} has no enable_cache")
    known = {id(one.hook) for one in _hooks(denoiser)}
    forwards = {part: vars(part).get("forward") for part in denoiser.modules()}
    wrappers = {part._orig_mod: part for part in forwards if isinstance(part, OptimizedModule)}
    compiled = wrappers or any(part._compiled_call_impl is not None for part in forwards)
    try:
        with _beneath_offload(denoiser):
            denoiser.enable_cache(config)
    except (IndexError, ValueError) as error:  # fewer blocks than it needs, or a class that it does not know
        raise Refusal(f"{key}: {type(denoiser).__name__}: {error}") from error
    hooked = [one for one in _hooks(denoiser) if id(one.hook) not in known]
    if not any(one.module is not denoiser for one in hooked):
        raise Refusal(f"{key}: no module of {type(denoiser).__name__} is one that it looks for")
    if len({one.module for one in hooked}) < len(hooked):
        raise Refusal(f"{key}: {type(denoiser).__name__} has one block alone, and none after it to skip")
    for one in hooked:
        if compiled and one.module is not denoiser:
            _keep_out_of_graphs(one, forwards[one.module], wrappers.get(one.module))
    watch = Watch(hooked, pipe, denoiser)
    denoiser._cache_watch = watch
    refuse_copies(denoiser, key)
    return watch


def proof_of_skips(
    pipe: DiffusionPipeline, site: Site, *, key: str, unit: str, remedy: str | None
) -> tuple[Effect, Tally]:
    """What the cache skipped in the last call of the pipeline, with its tally.

    Raises NoEffect where hooks are gone, undone or were passed by, the state was not reset, or, unless ``remedy`` is
    None, nothing was skipped.
    """
    denoiser: Any = getattr(pipe, site.model.denoiser)
    watch = getattr(denoiser, "_cache_watch", None)
    if not isinstance(watch, Watch):
        raise NoEffect(f"{key}: no cache is installed on {site.model.denoiser}")
    if watch.gone:
        raise NoEffect(f"{key}: {watch.gone} of {len(watch.hooked)} hooks are gone from {site.model.denoiser}")
    if watch.last is None:
        if watch.current.through:
            raise NoEffect(
                f"{key}: {type(pipe).__name__} never reset the cache, so each call would go on from the last"
            )
        raise NoEffect(f"{key}: the {unit}s of {site.model.denoiser} were never called through their hooks")
    if passed := [one for one in watch.hooked if not watch.last.through[one]]:
        paths = {module: path for path, module in denoiser.named_modules()}
        raise NoEffect(
            f"{key}: {len(passed)} of {len(watch.hooked)} hooked modules of {site.model.denoiser} were never called "
            f"through their hooks in the last call, such as {paths[passed[0].module] or 'itself'}"
        )
    called, skipped = watch.last.called, watch.last.called - watch.last.computed
    if not skipped and remedy is not None:
        raise NoEffect(f"{key}: none of the {called} {unit} calls was skipped; {remedy}")
    numbers: dict[str, int | float | str] = {"called": called, "skipped": skipped, "hooks": len(watch.hooked)}
    return Effect(f"{skipped} of {called} {unit} calls were skipped", numbers), watch.last


def keep_mag_cache_ratios(watch: Watch) -> None:
    """Keep the magnitude ratios that MagCache measures; diffusers prints and then forgets them."""
    tail = watch.counted[-1].hook
    measure = tail._perform_calibration_step

    def measuring(state: Any, residual: torch.Tensor) -> None:
        measure(state, residual)
        row = watch.current.ratios.setdefault(tail.state_manager.context.name, [])
        row.append(state.calibration_ratios[-1])

    tail._perform_calibration_step = measuring


def cached_timestep(pipe: Any, *, key: str) -> Callable[[], float]:
    """What tells a cache the pipeline's current timestep; read from the device once per step, not once per block.

    Raises Refusal where the pipeline does not tell it.
    """
    if not hasattr(type(pipe), "current_timestep"):
        raise Refusal(f"{key}: {type(pipe).__name__} does not tell the current timestep, which this cache reads")
    seen: Any = None
    value = 0.0

    def current() -> float:
        nonlocal seen, value
        if pipe.current_timestep is not seen:
            seen = pipe.current_timestep
            value = float(seen)
        return value

    return current


def _hooks(denoiser: nn.Module) -> Iterator[Hooked]:
    for part in denoiser.modules():
        registry = vars(part).get("_diffusers_hook")
        if registry is not None:
            yield from (Hooked(registry._module_ref, name, hook) for name, hook in registry.hooks.items())


def _keep_out_of_graphs(one: Hooked, forward: Callable[..., Any] | None, wrapper: Any) -> None:
    """Keep the hook out of graphs.

    ``forward`` is what the module itself had before the cache, if anything; ``wrapper`` its compiled wrapper, if it has
    one and the hook is beneath, where SeaCache puts its first.
    """
    import torch
    from torch._dynamo.eval_frame import OptimizedModule

    module: Any = one.module
    if isinstance(module, OptimizedModule):  # its forward is the compiled one, so the hook is around it
        return
    if wrapper is None and module._compiled_call_impl is None:
        module.forward = torch.compiler.disable(module.forward, reason="a cache decides here")  # type: ignore[no-untyped-call]
        return
    around = vars(module).pop("forward")
    if forward is not None:
        module.forward = forward
    if wrapper is None:
        one.hook.fn_ref.original_forward, module._compiled_call_impl = module._compiled_call_impl, around
    else:
        one.hook.fn_ref.original_forward, wrapper.forward = wrapper.forward, around


@contextmanager
def _beneath_offload(denoiser: Any) -> Iterator[None]:
    """Set hooks on the denoiser's own forward, and accelerate's around them.

    At the end of each call diffusers takes accelerate's hook off (``maybe_free_model_hooks``), which puts the forward
    back that was there before it, and with it would take off what was set later.
    """
    if not hasattr(denoiser, "_old_forward"):
        yield
        return
    around, denoiser.forward = denoiser.forward, denoiser._old_forward
    yield
    denoiser._old_forward, denoiser.forward = denoiser.forward, around
