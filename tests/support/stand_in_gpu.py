"""A GPU that is not there: tensors that say they are on ``cuda`` and compute on the CPU.

What it shows is *where* tensors are: `to("cuda")` moves, a product of tensors on two devices raises as it does on a
GPU, and `numpy` refuses what was not brought back. Values are exact. What it cannot show: streams, pinned memory,
asynchronous copies, how much memory is really used, compiled code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
DEVICE, IS_CUDA = torch.Tensor.device.__get__, torch.Tensor.is_cuda.__get__
SET_DATA = torch.Tensor.data.__set__
TREES = (tuple, list, dict)
AS_THEY_ARE = (torch.device, torch._C._nn._parse_to, torch._has_compatible_shallow_copy_type)
MIXING = (  # what takes tensors of two devices on a GPU, too
    torch.Tensor.to,
    torch.Tensor.cpu,
    torch.Tensor.copy_,
    torch.Tensor.__getitem__,
    torch.Tensor.__setitem__,
)


class Placed(torch.Tensor):
    """A tensor of the CPU that says it is at ``place``."""

    place = CPU

    @staticmethod
    def __new__(cls, value: torch.Tensor, requires_grad: bool = False) -> Placed:  # as Parameter is called
        made = value.detach().as_subclass(cls)
        made._is_param = True
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return call(func, args, kwargs or {})


class Calls(TorchFunctionMode):
    """Sees calls without any :class:`Placed`, such as ``torch.zeros(2, device="cuda")``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return call(func, args, kwargs or {})


@contextlib.contextmanager
def stand_in_gpu() -> Iterator[None]:
    """Within it, ``cuda`` can be named as a device."""
    with mock.patch("torch.cuda._lazy_init"), torch.no_grad(), Calls():
        yield


def place_on_host(module: torch.nn.Module) -> None:
    """Make the weights such that they can move to the GPU that is not there."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = torch.nn.Parameter(Placed(weight.detach()), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.detach().as_subclass(Placed)


def call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``func`` on the CPU, with results that are where a GPU would have them."""
    if func in AS_THEY_ARE:
        return func(*args, **kwargs)
    if func == DEVICE:
        return _place(args[0])
    if func == IS_CUDA:
        return _place(args[0]) == GPU
    if func == SET_DATA:
        func(*args)
        args[0].place = _place(args[1])
        return None
    tensors = _tensors((*args, *kwargs.values()))
    places = {_place(tensor) for tensor in tensors if tensor.dim()}  # numbers may come from the host
    if len(places) > 1 and func not in MIXING:
        raise RuntimeError(f"{func.__name__}: expected all tensors on one device, found {sorted(map(str, places))}")
    if func is torch.Tensor.numpy and GPU in places:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    place = _asked(func, args, kwargs) or _place(max(tensors, key=torch.Tensor.dim, default=torch.empty(0)))
    out = func(*(_each(_on_cpu, arg) for arg in args), **{key: _each(_on_cpu, arg) for key, arg in kwargs.items()})
    if place == CPU and not any(isinstance(tensor, Placed) for tensor in tensors):
        return out
    given = {id(tensor) for tensor in tensors}
    return _each(lambda leaf: _placed(leaf, place, is_given=id(leaf) in given), out)


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, TREES):
            found += (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))
    return found


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    return tree_map(change, value) if isinstance(value, TREES) else change(value)  # the former is slow


def _place(tensor: torch.Tensor) -> torch.device:
    return tensor.device if tensor.is_meta or not isinstance(tensor, Placed) else tensor.place


def _asked(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """The device that a call names."""
    if func is torch.Tensor.cpu:
        return CPU
    if func is torch.Tensor.to and len(args) > 1 and isinstance(args[1], torch.Tensor):
        return _place(args[1])
    named = torch._C._nn._parse_to(*args[1:], **kwargs)[0] if func is torch.Tensor.to else kwargs.get("device")
    if named is None:
        return None
    device = torch.device(named)
    return GPU if device.type == "cuda" else device


def _on_cpu(leaf: Any) -> Any:
    names_gpu = isinstance(leaf, (str, torch.device)) and str(leaf).partition(":")[0] == "cuda"
    return CPU if names_gpu else leaf


def _placed(leaf: Any, place: torch.device, *, is_given: bool) -> Any:
    if not isinstance(leaf, torch.Tensor) or (isinstance(leaf, Placed) and _place(leaf) == place):
        return leaf
    made = (leaf.view_as(leaf) if is_given else leaf).as_subclass(Placed)
    made.place = place
    return made
