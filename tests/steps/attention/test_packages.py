"""Attention kernels of packages that need a GPU: stand-ins for the packages show that they, and they alone, compute."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from diffusers.models import attention_dispatch
from support.option_steps import step
from support.tiny_families import apply, cell, drawn, error, pipelines, verify
from support.tiny_pipelines import pipeline, site
from support.tolerances import EXACT

from diffopt.errors import Refusal

CALLS: list[torch.Size] = []


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """What every package computes: (batch, tokens, heads, head size), as they take it."""
    CALLS.append(q.shape)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)


def flash_attn_func(*, q: Any, k: Any, v: Any, softmax_scale: Any, causal: bool, **_: Any) -> torch.Tensor:
    assert not causal
    return attend(q, k, v, None, softmax_scale)


def flash_attn_3(*, q: Any, k: Any, v: Any, softmax_scale: Any, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Of diffusers, around the package's: as an operator of torch it is there on CUDA alone."""
    return flash_attn_func(q=q, k=k, v=v, softmax_scale=softmax_scale, causal=causal), q.new_zeros(q.shape[:3])


def sageattn(*, q: Any, k: Any, v: Any, tensor_layout: str, sm_scale: Any, **_: Any) -> torch.Tensor:
    assert tensor_layout == "NHD"
    return attend(q, k, v, None, sm_scale)


def memory_efficient_attention(q: Any, k: Any, v: Any, mask: Any, _dropout: float, scale: Any) -> torch.Tensor:
    return attend(q, k, v, mask, scale)


# option: what diffusers asks before it uses the package, the name it calls, and the stand-in
PACKAGES: dict[str, tuple[str, str, Any]] = {
    "flash2": ("_CAN_USE_FLASH_ATTN", "flash_attn_func", flash_attn_func),
    "flash3": ("_CAN_USE_FLASH_ATTN_3", "_wrapped_flash_attn_3", flash_attn_3),
    "sage": ("_CAN_USE_SAGE_ATTN", "sageattn", sageattn),
    "xformers": (
        "_CAN_USE_XFORMERS_ATTN",
        "xops",
        types.SimpleNamespace(memory_efficient_attention=memory_efficient_attention),
    ),
}


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an option whose package is stood in for."""
    has, name, made = PACKAGES[request.param]
    monkeypatch.setattr(attention_dispatch, has, True)
    monkeypatch.setattr(attention_dispatch, name, made)
    CALLS.clear()
    torch.set_num_threads(1)
    return str(request.param)


@pytest.mark.parametrize("family", ["sd15", "flux_dev"])
def test_the_kernel_of_a_package_computes(package: str, family: str) -> None:
    asked, chosen = cell(family), step("attention", package)
    plain, pipes = pipelines(asked), pipelines(asked)
    calls = 3 if family == "sd15" else 2  # of the denoiser in two steps; PNDM begins with one more
    apply(pipes, asked, chosen)
    assert error(drawn(pipes, asked), drawn(plain, asked)) <= EXACT
    (effect,) = verify(pipes, asked, chosen)
    assert len(CALLS) == effect.numbers[asked.recipe.model.denoiser] * calls
    assert f"call {chosen.backend}" in effect.summary


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_refused(name: str) -> None:
    with pytest.raises(Refusal, match=rf"attention\.backend={step('attention', name).backend}: "):
        step("attention", name).apply(pipeline(), site())
