"""What the compiled code of a module depends on, as a hash, and the weights that it is given. Imports torch."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from diffopt.machine.content import sha256_of

# attributes of a module that are told otherwise: its weights, its parts, and diffusers' config, which has a path in it
ELSEWHERE = frozenset({"_parameters", "_buffers", "_modules", "_internal_dict"})

Constants = dict[str, torch.Tensor]


def compiled_constants(module: nn.Module) -> Constants:
    """The module's parameters and buffers by the names that a package knows them by.

    A quantized weight is a tensor made of plain ones, which export takes apart (torch's subclass_parametrization.py).
    """
    found: Constants = {}
    named = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    for name, tensor in named:
        if is_traceable_wrapper_subclass(tensor):
            owner, _, leaf = name.rpartition(".")
            stem = f"{owner}.parametrizations.{leaf}" if owner else f"parametrizations.{leaf}"
            found |= {f"{stem}.original{index}": part for index, part in enumerate(_plain(tensor))}
        else:
            found[name] = tensor
    return found


def fingerprint_of_compiled_module(module: nn.Module) -> str:
    """A hash of what a module's graph is made of, which is everything but the values of its weights.

    That is the classes, their source files, their plain settings, those of attention processors, and of each weight
    its kind, shape, strides and type.
    """
    facts: list[str] = []
    sources: set[str] = set()
    for name, part in module.named_modules():
        for owner in (part, getattr(part, "processor", None)):
            if owner is not None:
                facts.append(f"{name}: {type(owner).__qualname__} {_settings(owner)}")
                sources.add(_hash_of_source(type(owner)))
    for name, tensor in compiled_constants(module).items():
        facts.append(f"{name}: {tuple(tensor.shape)} {tensor.stride()} {tensor.dtype} {tensor.device.type}")
    facts += [f"{name}: {type(tensor).__qualname__}" for name, tensor in module.named_parameters()]
    return hashlib.sha256("\n".join([*facts, *sorted(sources)]).encode()).hexdigest()


def _plain(tensor: Any) -> Iterator[torch.Tensor]:
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain(getattr(tensor, name))


def _settings(owner: Any) -> dict[str, str]:
    """Attributes that are numbers, words, tensors that are no weights, or made of such, by name."""
    told = {name: _as_text(value) for name, value in sorted(vars(owner).items()) if name not in ELSEWHERE}
    return {name: text for name, text in told.items() if text is not None}


def _as_text(value: Any) -> str | None:
    """The value as text that is the same in every process; None where it has none."""
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        return repr(value)
    if isinstance(value, torch.Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return hashlib.sha256(content.numpy().tobytes()).hexdigest()
    if isinstance(value, Mapping):  # as the scales of a LoRA, by adapter
        return _together(chain.from_iterable(value.items()))
    return _together(value) if isinstance(value, (tuple, list)) else None


def _together(values: Iterable[Any]) -> str | None:
    told = [_as_text(value) for value in values]
    return None if None in told else str(told)


def _hash_of_source(cls: type) -> str:
    """A hash of the file that defines the class, so that a package does not outlive the code that it was made of."""
    try:
        file = inspect.getsourcefile(cls)
    except TypeError:  # built in
        file = None
    return sha256_of(Path(file)) if file else cls.__qualname__
