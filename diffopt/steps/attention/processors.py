"""The attention modules of a component, and which processors can take the place of the stock ones.

Diffusers, and the processors of ours that derive from its, are imported by the functions: a plan needs no torch.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

from diffopt.errors import Refusal

if TYPE_CHECKING:
    from diffusers.models.attention_dispatch import AttentionBackendName
    from torch import nn

    from diffopt.steps.attention.unet import DispatchAttnProcessor


@cache
def dispatching_processors() -> dict[type, type[DispatchAttnProcessor]]:
    """Stock processors that do not call the dispatcher, and ours that compute the same through it."""
    from diffusers.models import attention_processor as stock
    from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0

    from diffopt.steps.attention import dit, unet  # here for torch

    return {
        stock.AttnProcessor: unet.DispatchAttnProcessor,
        stock.AttnProcessor2_0: unet.DispatchAttnProcessor,
        stock.FusedAttnProcessor2_0: unet.DispatchAttnProcessor,
        stock.XFormersAttnProcessor: unet.DispatchAttnProcessor,
        stock.AttnAddedKVProcessor: unet.AddedKVDispatchProcessor,
        stock.AttnAddedKVProcessor2_0: unet.AddedKVDispatchProcessor,
        stock.XFormersAttnAddedKVProcessor: unet.AddedKVDispatchProcessor,
        stock.JointAttnProcessor2_0: dit.JointDispatchProcessor,
        stock.CogVideoXAttnProcessor2_0: dit.CogVideoXDispatchProcessor,
        stock.FusedCogVideoXAttnProcessor2_0: dit.CogVideoXDispatchProcessor,
        SanaAttnProcessor2_0: dit.SanaDispatchProcessor,
    }


@cache
def plain_processors() -> dict[type, type]:
    """The plain processors of diffusers, by what they take the place of."""
    from diffusers.models import attention_processor as stock

    ours = dispatching_processors()
    of_unets, with_text = ours[stock.AttnProcessor], ours[stock.AttnAddedKVProcessor]
    return {
        **{cls: stock.AttnProcessor for cls, own in ours.items() if own is of_unets},
        **{cls: stock.AttnAddedKVProcessor for cls, own in ours.items() if own is with_text},
        of_unets: stock.AttnProcessor,
        with_text: stock.AttnAddedKVProcessor,
    }


@cache
def fused_processors() -> dict[type, type]:
    """What reads fused projections in place of a stock processor.

    For Stable Diffusion 3 diffusers has one too, but that leaves out the norms of query and key, which 3.5 has, and
    needs text, which the dual blocks of 3.5 medium do not give.
    """
    from diffusers.models import attention_processor as stock
    from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0

    ours = dispatching_processors()
    return {
        stock.AttnProcessor2_0: stock.FusedAttnProcessor2_0,
        stock.CogVideoXAttnProcessor2_0: stock.FusedCogVideoXAttnProcessor2_0,
        stock.JointAttnProcessor2_0: ours[stock.JointAttnProcessor2_0],
        SanaAttnProcessor2_0: ours[SanaAttnProcessor2_0],
    }


def attention_modules(module: nn.Module) -> dict[str, nn.Module]:
    """All attention modules of a component, by path."""
    from diffusers.models import attention_processor as stock
    from diffusers.models.attention import AttentionModuleMixin

    kinds = (stock.Attention, AttentionModuleMixin)
    return {path: part for path, part in module.named_modules() if isinstance(part, kinds)}


def softmax_attentions(module: nn.Module) -> dict[str, Any]:
    """Those that a kernel could compute; linear attention has no softmax."""
    from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0 as Linear

    return {path: part for path, part in attention_modules(module).items() if not isinstance(part.processor, Linear)}


def backend_of_processor(attention: Any) -> AttentionBackendName | None:
    """What the processor in place asks the dispatcher for."""
    return getattr(attention.processor, "_attention_backend", None)


def reads_fused_projections(processor: Any) -> bool:
    """Whether the processor's code asks for fused projections, itself or in a function of its module.

    Whether the module was fused does not tell: the processors of LTX and Qwen go on with the separate ones.
    """
    call = inspect.unwrap(type(processor).__call__)
    names = set(call.__code__.co_names)
    called = [call.__globals__.get(name) for name in names]
    names |= {name for function in called if inspect.isfunction(function) for name in function.__code__.co_names}
    return not names.isdisjoint({"fused_projections", "to_qkv", "to_kv"})


def dispatching_processor_for(path: str, attention: Any) -> type[DispatchAttnProcessor] | None:
    """Our processor for a stock one that does not call the dispatcher; None for one that does.

    Raises Refusal where ours cannot compute what the stock one does.
    """
    if hasattr(attention.processor, "_attention_backend"):
        return None
    from diffusers.models.attention_processor import Attention

    ours = dispatching_processors().get(type(attention.processor))
    if ours is None or not isinstance(attention, Attention):
        raise Refusal(
            f"attention: {path} uses {type(attention.processor).__name__}, which computes something else than plain "
            "self- or cross-attention and does not call diffusers' dispatcher; use attention=auto"
        )
    return ours
