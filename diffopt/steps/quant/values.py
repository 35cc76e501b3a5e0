"""Values of quantized weights: none of them infinite or no number, also where a whole row is zero.

A float8 scale is the largest absolute value of a row over the largest float8. torchao has no lower bound for it: of a
row of zeros, and in float16 of one below 1e-5, it is zero, and the row becomes zero over zero. Its int8 and int4 scales
have one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

# A row of inputs counts as having this for its largest value, at least. Over 448 it is the smallest number of float16,
# in which torchao computes the scale of float16 inputs. Inputs that are smaller are still told apart.
SMALLEST_LARGEST = 448 * 2.0**-24


def mend_zero_scales(layers: Iterable[nn.Module]) -> None:
    """Make rows of torchao's float8 weights that have no scale zeros, in place; what they had is at most 1e-5."""
    import torch
    from torchao.quantization import Float8Tensor

    for layer in layers:
        weight = layer.weight
        if isinstance(weight, Float8Tensor) and bool((none := weight.scale == 0).any()):
            weight.qdata.view(torch.uint8).masked_fill_(none, 0)  # bits: few operations take float8
            weight.scale.masked_fill_(none, 1)


def first_non_finite_weight(layers: Mapping[str, nn.Module]) -> str | None:
    """The first parameter, by path, that has a value that is not finite, in words; None where they all are finite."""
    for path, layer in layers.items():
        for name, parameter in layer.named_parameters(recurse=False):
            if (tensor := _non_finite_tensor(parameter)) is not None:
                return f"{path}.{name}{tensor} is not finite"
    return None


def _non_finite_tensor(weight: torch.Tensor) -> str | None:
    """Which of the tensors that torchao splits a weight into is not finite, as ``.scale``; of another weight ``""``."""
    import torch

    split = hasattr(weight, "__tensor_flatten__")
    for name in weight.__tensor_flatten__()[0] if split else ("",):  # type: ignore[attr-defined,no-untyped-call]
        part = getattr(weight, name) if split else weight
        if not part.is_floating_point() or part.is_meta:  # offloaded weights are not at hand
            continue
        wide = part.to(torch.float16) if part.dtype.itemsize == 1 else part  # float8 knows no isfinite
        if not bool(torch.isfinite(wide).all()):
            return f".{name}" if split else ""
    return None
