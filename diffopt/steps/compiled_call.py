"""A compiled function that keeps count of what dynamo did in its calls, and the proof made of it. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch._dynamo.output_graph import GraphCompileReason
from torch._dynamo.utils import counters, graph_break_reasons
from torch.utils._pytree import tree_map_only

from diffopt.errors import NoEffect
from diffopt.step import Effect


class CompiledCall:
    """Calls ``function`` and attributes to it the graphs and graph breaks that dynamo counted meanwhile.

    With ``cuda_graphs``, each call begins a new step of the CUDA-graph pool and returns copies: the next replay writes
    into the same addresses (https://docs.pytorch.org/docs/stable/torch.compiler_cudagraph_trees.html).
    """

    def __init__(self, function: Callable[..., Any], *, cuda_graphs: bool) -> None:
        self.function = function
        self.cuda_graphs = cuda_graphs
        self.calls = 0
        self.graphs = 0
        self.breaks: list[str] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        graphs, breaks = counters["stats"]["unique_graphs"], len(graph_break_reasons)
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        out = self.function(*args, **kwargs)
        self.calls += 1
        self.graphs += counters["stats"]["unique_graphs"] - graphs
        self.breaks += [_place(reason) for reason in graph_break_reasons[breaks:]]
        return tree_map_only(torch.Tensor, torch.clone, out) if self.cuda_graphs else out


def proof(calls: Mapping[str, Any], *, fullgraph: bool) -> Effect:
    """Sum up the :class:`CompiledCall` of each component. Raises NoEffect where one is gone or compiled nothing.

    Graphs that dynamo kept from another pipeline of this process are not counted, so a second pipeline that reuses
    them shows none; ``torch._dynamo.reset()`` forgets them.
    """
    numbers: dict[str, int | float | str] = {}
    places: list[str] = []
    for name, call in calls.items():
        if not isinstance(call, CompiledCall):
            raise NoEffect(f"compile: {name} is not compiled (any more)")
        if not call.calls:
            raise NoEffect(f"compile: {name} was never called through its compiled function")
        if not call.graphs:
            raise NoEffect(f"compile: dynamo compiled 0 graphs in {call.calls} calls of {name}")
        numbers[name] = call.graphs
        places += [f"{name}: {place}" for place in call.breaks]
    if places and fullgraph:
        raise NoEffect(f"compile.fullgraph=true, but {len(places)} graph breaks: {'; '.join(places[:5])}")
    graphs = sum(calls[name].graphs for name in calls)
    numbers |= {"graphs": graphs, "graph_breaks": len(places)}
    if places:
        numbers["graph_break_places"] = "; ".join(places)
    return Effect(f"{graphs} graphs, {len(places)} graph breaks", numbers)


def proof_of_regions(found: Mapping[str, nn.Module], regions: Mapping[str, int], *, fullgraph: bool) -> Effect:
    """The same for components of which only parts are compiled: ``regions`` of them."""
    if empty := [name for name, count in regions.items() if not count]:
        raise NoEffect(f"compile: no part of {empty[0]} is compiled")
    effect = proof({name: module._compiled_call_impl for name, module in found.items()}, fullgraph=fullgraph)
    numbers = {**effect.numbers, **{f"{name}_regions": count for name, count in regions.items()}}
    return Effect(f"{sum(regions.values())} regions compiled into {effect.summary}", numbers)


def with_cuda_graphs(effect: Effect) -> Effect:
    """Add what inductor recorded as CUDA graphs. Raises NoEffect where it recorded none."""
    recorded, skipped = _recorded_cuda_graphs(), int(counters["inductor"]["cudagraph_skips"])
    if not recorded:
        raise NoEffect(f"compile: no CUDA graph was recorded, inductor skipped {skipped}")
    numbers = {**effect.numbers, "cuda_graphs": recorded, "cuda_graphs_skipped": skipped}
    return Effect(f"{effect.summary}, {recorded} CUDA graphs", numbers)


def _place(reason: GraphCompileReason) -> str:
    """``file:line: what dynamo could not trace``, with the innermost line of user code."""
    what = reason.reason.strip().splitlines()[0]
    if not reason.user_stack:
        return what
    frame = reason.user_stack[-1]
    return f"{frame.filename.rpartition('/site-packages/')[2]}:{frame.lineno}: {what}"


def _recorded_cuda_graphs() -> int:
    """CUDA graphs that inductor recorded in this process on the current device."""
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
