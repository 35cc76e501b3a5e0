"""The attention modules of a component, and which processors can take the place of the stock ones. Imports torch."""

from __future__ import annotations

import inspect
from typing import Any

from diffusers.models import attention_processor as stock
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0
from torch import nn

from diffopt.errors import Refusal
from diffopt.steps.attention.dit import CogVideoXDispatchProcessor, JointDispatchProcessor, SanaDispatchProcessor
from diffopt.steps.attention.unet import AddedKVDispatchProcessor, DispatchAttnProcessor

# Stock processors that do not call the dispatcher, and ours that compute the same through it.
OURS: dict[type, type[DispatchAttnProcessor]] = {
    stock.AttnProcessor: DispatchAttnProcessor,
    stock.AttnProcessor2_0: DispatchAttnProcessor,
    stock.FusedAttnProcessor2_0: DispatchAttnProcessor,
    stock.XFormersAttnProcessor: DispatchAttnProcessor,
    stock.AttnAddedKVProcessor: AddedKVDispatchProcessor,
    stock.AttnAddedKVProcessor2_0: AddedKVDispatchProcessor,
    stock.XFormersAttnAddedKVProcessor: AddedKVDispatchProcessor,
    stock.JointAttnProcessor2_0: JointDispatchProcessor,
    stock.CogVideoXAttnProcessor2_0: CogVideoXDispatchProcessor,
    stock.FusedCogVideoXAttnProcessor2_0: CogVideoXDispatchProcessor,
    SanaAttnProcessor2_0: SanaDispatchProcessor,
}

# The plain processors of diffusers, by what they take the place of.
PLAIN: dict[type, type] = {
    **{cls: stock.AttnProcessor for cls, ours in OURS.items() if ours is DispatchAttnProcessor},
    **{cls: stock.AttnAddedKVProcessor for cls, ours in OURS.items() if ours is AddedKVDispatchProcessor},
    DispatchAttnProcessor: stock.AttnProcessor,
    AddedKVDispatchProcessor: stock.AttnAddedKVProcessor,
}

# What reads fused projections in place of a stock processor. For Stable Diffusion 3 diffusers has one too, but that
# leaves out the norms of query and key, which 3.5 has, and needs text, which the dual blocks of 3.5 medium do not give.
FUSED: dict[type, type] = {
    stock.AttnProcessor2_0: stock.FusedAttnProcessor2_0,
    stock.CogVideoXAttnProcessor2_0: stock.FusedCogVideoXAttnProcessor2_0,
    stock.JointAttnProcessor2_0: JointDispatchProcessor,
    SanaAttnProcessor2_0: SanaDispatchProcessor,
}

LINEAR = (stock.SanaLinearAttnProcessor2_0,)  # without a softmax, so that no kernel computes it


def attentions(module: nn.Module) -> dict[str, nn.Module]:
    """All attention modules of a component, by path."""
    kinds = (stock.Attention, AttentionModuleMixin)
    return {path: part for path, part in module.named_modules() if isinstance(part, kinds)}


def softmax_attentions(module: nn.Module) -> dict[str, Any]:
    """Those that a kernel could compute."""
    return {path: part for path, part in attentions(module).items() if not isinstance(part.processor, LINEAR)}


def backend_of(attention: Any) -> AttentionBackendName | None:
    """What the processor in place asks the dispatcher for."""
    return getattr(attention.processor, "_attention_backend", None)


def reads_fused(processor: Any) -> bool:
    """Whether the processor's code asks for fused projections, itself or in a function of its module.

    Whether the module was fused does not tell: the processors of LTX and Qwen go on with the separate ones.
    """
    call = inspect.unwrap(type(processor).__call__)
    names = set(call.__code__.co_names)
    called = [call.__globals__.get(name) for name in names]
    names |= {name for function in called if inspect.isfunction(function) for name in function.__code__.co_names}
    return not names.isdisjoint({"fused_projections", "to_qkv", "to_kv"})


def dispatching(path: str, attention: Any) -> type[DispatchAttnProcessor] | None:
    """Our processor for a stock one that does not call the dispatcher; None for one that does.

    Raises Refusal where ours cannot compute what the stock one does.
    """
    if hasattr(attention.processor, "_attention_backend"):
        return None
    ours = OURS.get(type(attention.processor))
    if ours is None or not isinstance(attention, stock.Attention):
        raise Refusal(
            f"attention: {path} uses {type(attention.processor).__name__}, which computes something else than plain "
            "self- or cross-attention and does not call diffusers' dispatcher; use attention=auto"
        )
    return ours
