"""Networks without weights: their parameters have shapes and no values, and all around them is real, on the CPU.

Parameters lie on the meta device. What comes in touch with them has a shape and no values either, what does not is
computed as ever: token ids, masks and tables of positions keep their values, on which the shape of something else may
depend. What a network gives to the pipeline is zeros. So the pipeline's own code and its sampler run as they do with
weights, and every product in a network is checked for its shapes.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

MOST_REAL = 2**27  # values of a tensor that are kept; half a GiB in float32
SHARED = ("modeling_utils", "loading_utils")  # modules of what every network of diffusers and transformers can do
TIMES = ("timestep", "timesteps", "t")  # arguments whose values change from step to step, and nothing's shape with them
CPU, META = torch.device("cpu"), torch.device("meta")
ATEN = torch.ops.aten
INDEXING = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default)


class TooLarge(Exception):
    """A network gave something that is too large to be made of zeros here."""


class WithoutValues(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets tensors without values and those on the CPU meet, while this lasts: what comes of both has no values.

    A copy to the CPU is real, and so is all that is made anew, unless it is large.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        without = any(each.is_meta for each in given) or _most_values(given) > MOST_REAL
        if kwargs.get("device") is not None:
            to_cpu = torch.device(kwargs["device"]).type == "cpu"
            kwargs["device"] = META if without or _size(args) > MOST_REAL else CPU
            if func is ATEN._to_copy.default and to_cpu and without:
                return made_of_zeros(func(_shape_alone(args[0]), **kwargs))
        if not without:
            return func(*args, **kwargs)
        if func is ATEN.embedding.default:
            _check_ids(*args[:2])
        if func in INDEXING:
            args = (args[0], _places_under_masks(args[1]), *args[2:])
        shapes, settings = tree_map(_shape_alone, (args, kwargs))
        made = func(*shapes, **settings)
        return args[0] if func._schema.is_mutable and isinstance(made, torch.Tensor) else made  # it stays where it is


def _size(args: Any) -> int:
    """Values of what is made anew, by the size that comes first; 0 for all else."""
    size = args[0] if args and isinstance(args[0], list | tuple) else ()
    return math.prod(each for each in size if isinstance(each, int)) if size else 0


def _most_values(given: list[torch.Tensor]) -> int:
    """How many values tensors have when each is repeated along the sides of the others."""
    most = max((each.ndim for each in given), default=0)
    shapes = [[*([1] * (most - each.ndim)), *each.shape] for each in given]
    return math.prod(max(sides) for sides in zip(*shapes, strict=True)) if given else 0


def _shape_alone(value: Any) -> Any:
    return value.to(META) if isinstance(value, torch.Tensor) else value


def _check_ids(table: torch.Tensor, ids: torch.Tensor) -> None:
    """Raise IndexError as a table with values does."""
    if not ids.is_meta and ids.numel() and (most := int(ids.max())) >= len(table):
        raise IndexError(f"index out of range in self: {most} is looked up in a table of {len(table)} rows")


def _places_under_masks(indices: Any) -> list[Any]:
    """Masks as the places that they let through: how many these are, only their values tell."""
    found: list[Any] = []
    for index in indices:
        mask = isinstance(index, torch.Tensor) and index.dtype == torch.bool and not index.is_meta
        found += index.nonzero(as_tuple=True) if mask else [index]
    return found


def made_of_zeros(value: Any) -> Any:
    """Zeros on the CPU in place of tensors without values, also of those in what a VAE calls a distribution."""
    if isinstance(value, torch.Tensor):
        if not value.is_meta:
            return value
        if value.numel() > MOST_REAL:
            raise TooLarge(f"{size_in_words(value)} values at once")
        return torch.zeros(value.shape, dtype=value.dtype)
    if type(value).__name__.endswith("Distribution"):
        value = copy.copy(value)
        vars(value).update({name: made_of_zeros(part) for name, part in vars(value).items()})
    return value


def size_in_words(value: torch.Tensor) -> str:
    return "x".join(map(str, value.shape)) or "one number"


@dataclass(frozen=True)
class NetworkCall:
    """A call of a network by its pipeline."""

    component: str
    network: nn.Module
    method: str
    arguments: Mapping[str, Any]


class Networks:
    """The networks of pipelines, whose calls are watched."""

    def __init__(self) -> None:
        self.failed: NetworkCall | None = None  # the call that raised an exception
        self._inside = False
        self._known: dict[Any, Any] = {}

    @contextmanager
    def standing_in(self, pipes: Sequence[Any]) -> Iterator[None]:
        """Watch those of ``pipes``, whose parameters are on the meta device, and let these be called."""
        for pipe in pipes:
            for name, part in pipe.components.items():
                if isinstance(part, nn.Module):
                    self._watch(name, part)
        with WithoutValues():  # type: ignore[no-untyped-call]
            yield

    def _watch(self, component: str, network: nn.Module) -> None:
        """Give the network a class of its own that tells where it seems to lie and sees what the pipeline calls."""
        cls = type(network)
        changes: dict[str, Any] = {"device": property(lambda self: CPU), "__module__": cls.__module__}
        for name, function in _methods(cls):
            changes[name] = self._watched(component, name, function)
        network.__class__ = type(cls.__name__, (cls,), changes)

    def _watched(self, component: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(network: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(network, *args, **kwargs)
            arguments = _named_arguments(signature, args, kwargs)
            self._inside = True
            try:
                made = self._made((component, name), arguments, lambda: function(network, *args, **kwargs))
                return tree_map(made_of_zeros, made)
            except Exception:
                self.failed = NetworkCall(component, network, name, arguments)
                raise
            finally:
                self._inside = False

        return call

    def _made(self, called: tuple[str, str], arguments: Mapping[str, Any], work: Callable[[], Any]) -> Any:
        """What a call gives; the same call again, as in each step, gives the same shapes."""
        key = _key_of_network_call(called, arguments)
        if key is not None and key in self._known:
            return self._known[key]
        made = work()
        if key is not None and any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(made)):
            self._known[key] = made
        return made


def _named_arguments(signature: inspect.Signature, args: Any, kwargs: Any) -> Mapping[str, Any]:
    """What a method is given, itself left out; by its place where a decorator takes more than the method says."""
    try:
        bound = signature.bind(None, *args, **kwargs).arguments
    except TypeError:
        return {**{str(place): value for place, value in enumerate(args)}, **kwargs}
    return dict(list(bound.items())[1:])


def _methods(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """What a network is called by: ``forward``, and of a VAE ``encode`` and ``decode``."""
    for name in dir(cls):
        function = inspect.getattr_static(cls, name)
        owner = next(base for base in cls.__mro__ if name in vars(base))
        module = owner.__module__
        called = inspect.isfunction(function) and not inspect.isgeneratorfunction(inspect.unwrap(function))
        if called and not name.startswith("_") and ".models." in module and module.rpartition(".")[2] not in SHARED:
            yield name, function


def _key_of_network_call(called: tuple[str, str], arguments: Mapping[str, Any]) -> Any:
    """What decides the shapes that a call gives; None where it is not known."""
    named = {name: value for name, value in arguments.items() if name not in TIMES}
    leaves, tree = tree_flatten(named)
    parts = [_part_of_key(leaf) for leaf in leaves]
    return None if None in parts else (called, str(tree), tuple(parts))


def _part_of_key(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        values = b"" if leaf.is_meta or leaf.is_floating_point() else leaf.numpy().tobytes()
        return tuple(leaf.shape), leaf.dtype, values
    if leaf is None or isinstance(leaf, str | int):
        return type(leaf), leaf
    return (float,) if isinstance(leaf, float) else None
