"""A compiled function that keeps count of what dynamo did in its calls, and the proof made of it.

Torch is imported by the functions that need it, so that a plan needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from diffopt.errors import NoEffect
from diffopt.machine.paths import source_in_words
from diffopt.schema.step import Effect

if TYPE_CHECKING:
    from torch import nn
    from torch._dynamo.output_graph import GraphCompileReason


class CompiledCall:
    """Calls ``function`` and attributes to it what happened meanwhile: graphs and graph breaks that dynamo counted,
    functions that it gave up, CUDA graphs that inductor recorded or skipped, and the compiled parts that were entered
    (:meth:`watch`).

    With ``cuda_graphs``, each call begins a new step of the CUDA-graph pool and returns copies: the next replay writes
    into the same addresses (https://docs.pytorch.org/docs/stable/torch.compiler_cudagraph_trees.html).

    Args:
        classes: of the modules that ``function`` has compiled.
        settle: called once, before ``function``, with the same arguments: the uncompiled call, where the first one does
            what dynamo cannot trace.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        cuda_graphs: bool,
        classes: Iterable[type[nn.Module]] = (),
        settle: Callable[..., Any] | None = None,
    ) -> None:
        self.function = function
        self.cuda_graphs = cuda_graphs
        self.classes = frozenset(classes)
        self.settle = settle
        self.calls = 0
        self.graphs = 0
        self.breaks: list[str] = []
        self.given_up = 0
        self.cuda_graphs_recorded = 0
        self.cuda_graphs_skipped = 0
        self.parts = 0
        self.parts_entered = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from torch._dynamo.utils import counters, graph_break_reasons

        if self.settle is not None:
            self.settle(*args, **kwargs)
            self.settle = None
        graphs, breaks, given_up = counters["stats"]["unique_graphs"], len(graph_break_reasons), _given_up()
        out = self._replay(*args, **kwargs) if self.cuda_graphs else self.function(*args, **kwargs)
        self.calls += 1
        self.graphs += counters["stats"]["unique_graphs"] - graphs
        self.breaks += [_place_of_break(reason) for reason in graph_break_reasons[breaks:]]
        self.given_up += _given_up() - given_up
        return out

    def _replay(self, *args: Any, **kwargs: Any) -> Any:
        import torch
        from torch._dynamo.utils import counters
        from torch.utils._pytree import tree_map_only

        recorded, skipped = count_recorded_cuda_graphs(), counters["inductor"]["cudagraph_skips"]
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        out = self.function(*args, **kwargs)
        self.cuda_graphs_recorded += count_recorded_cuda_graphs() - recorded
        self.cuda_graphs_skipped += counters["inductor"]["cudagraph_skips"] - skipped
        return tree_map_only(torch.Tensor, torch.clone, out)

    def watch(self, parts: Iterable[nn.Module]) -> None:
        """Count which of the compiled ``parts`` are entered, each once."""
        for part in parts:
            self.parts += 1
            self._count_once(part)

    def _count_once(self, part: Any) -> None:
        from torch._dynamo.eval_frame import OptimizedModule

        wrapped = isinstance(part, OptimizedModule)  # else it was compiled in place
        name = "forward" if wrapped else "_compiled_call_impl"
        compiled, entered = getattr(part, name), False

        def counted(*args: Any, **kwargs: Any) -> Any:  # stays: a block cache may have put itself around it
            nonlocal entered
            if not entered:
                entered = True
                self.parts_entered += 1
            return compiled(*args, **kwargs)

        setattr(part, name, counted)


def proof_of_compiled_graphs(calls: Mapping[str, Any], *, fullgraph: bool) -> Effect:
    """Sum up the :class:`CompiledCall` of each component. Raises NoEffect where one is gone or compiled nothing.

    Components of the same classes share graphs, as a UNet and its ControlNet do where blocks are compiled: the one that
    is called later shows none of its own. Graphs that dynamo kept from another pipeline of this process are not
    counted, so a second pipeline that reuses them shows none; ``torch._dynamo.reset()`` forgets them.
    """
    numbers: dict[str, int | float | str] = {}
    places: list[str] = []
    with_graphs = [call.classes for call in calls.values() if isinstance(call, CompiledCall) and call.graphs]
    compiled: frozenset[type[nn.Module]] = frozenset().union(*with_graphs)
    for name, call in calls.items():
        if not isinstance(call, CompiledCall):
            raise NoEffect(f"compile: {name} is not compiled (any more)")
        if not call.calls:
            raise NoEffect(f"compile: {name} was never called through its compiled function")
        shares = bool(call.classes) and call.classes <= compiled and bool(call.parts_entered or not call.parts)
        if not call.graphs and not shares:
            raise NoEffect(f"compile: dynamo compiled 0 graphs in {call.calls} calls of {name}")
        if call.given_up:
            raise NoEffect(
                f"compile: dynamo came to its limit of recompiles in {call.given_up} functions of {name}, the rest of "
                f"which ran uncompiled; their inputs change from call to call"
            )
        numbers[name] = call.graphs
        places += [f"{name}: {place}" for place in call.breaks]
    if places and fullgraph:
        raise NoEffect(f"compile.fullgraph=true, but {len(places)} graph breaks: {'; '.join(places[:5])}")
    graphs = sum(calls[name].graphs for name in calls)
    numbers |= {"graphs": graphs, "graph_breaks": len(places)}
    if places:
        numbers["graph_break_places"] = "; ".join(places)
    return Effect(f"{graphs} graphs, {len(places)} graph breaks", numbers)


def proof_of_compiled_regions(calls: Mapping[str, Any], *, fullgraph: bool) -> Effect:
    """The same for components of which only parts are compiled, and how many of those were ever entered."""
    effect = proof_of_compiled_graphs(calls, fullgraph=fullgraph)
    numbers = dict(effect.numbers)
    for name, call in calls.items():
        numbers[f"{name}_regions"] = call.parts_entered
        numbers[f"{name}_regions_never_entered"] = call.parts - call.parts_entered
    entered, parts = (sum(getattr(call, key) for call in calls.values()) for key in ("parts_entered", "parts"))
    return Effect(f"{entered} of {parts} regions entered, compiled into {effect.summary}", numbers)


def proof_with_cuda_graphs(effect: Effect, calls: Mapping[str, CompiledCall]) -> Effect:
    """Add what inductor recorded as CUDA graphs. Raises NoEffect where a component recorded none.

    Also where its calls begin no step of the pool, for then they draw what a replay left there.
    """
    numbers = dict(effect.numbers)
    for name, call in calls.items():
        if not call.cuda_graphs:
            raise NoEffect(f"compile: calls of {name} begin no step of the CUDA graphs, so replays overwrite outputs")
        if not call.cuda_graphs_recorded:
            raise NoEffect(
                f"compile: no CUDA graph of {name} was recorded in {call.calls} calls (the second one records), "
                f"inductor skipped {call.cuda_graphs_skipped}"
            )
        numbers[f"{name}_cuda_graphs"] = call.cuda_graphs_recorded
        numbers[f"{name}_cuda_graphs_skipped"] = call.cuda_graphs_skipped
    recorded = sum(call.cuda_graphs_recorded for call in calls.values())
    return Effect(f"{effect.summary}, {recorded} CUDA graphs", {**numbers, "cuda_graphs": recorded})


def uncompiled_class_of(part: nn.Module) -> type[nn.Module]:
    """The module's class, also where ``torch.compile`` wrapped it."""
    from torch._dynamo.eval_frame import OptimizedModule

    return type(part._orig_mod) if isinstance(part, OptimizedModule) else type(part)


def _given_up() -> int:
    """Functions that dynamo stopped compiling in this process: beyond its limit it runs them as they are."""
    from torch._dynamo.utils import counters

    missed = counters["unimplemented"]
    return sum(times for reason, times in missed.items() if reason.startswith("Dynamo recompile limit exceeded"))


def _place_of_break(reason: GraphCompileReason) -> str:
    """``file:line: what dynamo could not trace``, with the innermost line of user code."""
    what = reason.reason.strip().splitlines()[0]
    if not reason.user_stack:
        return what
    frame = reason.user_stack[-1]
    return f"{source_in_words(frame.filename)}:{frame.lineno}: {what}"


def count_recorded_cuda_graphs() -> int:
    """CUDA graphs that inductor recorded in this process on the current device, in microseconds.

    Equal before and after some calls: all of them were replays.
    """
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return 0
    from torch._inductor.cudagraph_trees import get_manager

    manager = get_manager(torch.cuda.current_device(), create_if_none_exists=False)
    if manager is None:
        return 0
    pending = [node for nodes in manager.roots.values() for node in nodes]
    recorded = 0
    while pending:
        node = pending.pop()
        recorded += 1
        pending += [child for children in node.children.values() for child in children]
    return recorded
