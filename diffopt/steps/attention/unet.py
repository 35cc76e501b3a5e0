"""Attention processors that give UNets and VAEs every backend of diffusers' dispatcher. Imports torch.

Many transformers in diffusers call the dispatcher themselves; the stock processors of ``Attention`` call
``scaled_dot_product_attention`` directly, and ``set_attention_backend`` passes them over without a word. Those of
transformers are replaced in ``dit.py``.
"""

from __future__ import annotations

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.attention_processor import Attention


class DispatchAttnProcessor:
    """Self- and cross-attention through ``dispatch_attention_fn``; reads fused projections where there are some.

    Has the two attributes by which diffusers steers processors: ``_attention_backend`` (``set_attention_backend``) and
    ``_parallel_config`` (``enable_parallelism``).
    """

    def __init__(self, backend: AttentionBackendName | None = None) -> None:
        self._attention_backend = backend
        self._parallel_config = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend.

        hidden_states:          (batch, queries, channels), or (batch, channels, height, width) in a VAE
        encoder_hidden_states:  (batch, keys, cross channels); None for self-attention
        attention_mask:         additive, (batch, 1, keys) or (batch * heads, 1 or queries, keys)
        temb:                   what the spatial norm of a VAE is conditioned on
        returns                 the shape of ``hidden_states``
        """
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if is_picture := hidden_states.ndim == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        mask = _mask(attn, attention_mask, hidden_states if encoder_hidden_states is None else encoder_hidden_states)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)

        query, key, value = project_query_key_value(attn, hidden_states, encoder_hidden_states)
        query, key = self._normed(attn, query, key)
        attended = self.attend(query, key, split_attention_heads(attn, value), mask, scale=attn.scale)

        out: torch.Tensor = attn.to_out[1](attn.to_out[0](attended))
        if is_picture:
            out = out.transpose(1, 2).reshape(residual.shape)
        if attn.residual_connection:
            out = out + residual
        out = out / attn.rescale_output_factor
        return out

    def _normed(self, attn: Attention, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Query and key by heads; the norms are of single heads."""
        return normed_query_and_key(attn, split_attention_heads(attn, query), split_attention_heads(attn, key))

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
        scale: float | None = None,
    ) -> torch.Tensor:
        """(batch, tokens, heads, head size) each, to (batch, queries, channels); ``scale`` is 1/sqrt(head size)."""
        attended: torch.Tensor = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=mask,
            scale=scale,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attended.flatten(2).to(query.dtype)


class AddedKVDispatchProcessor(DispatchAttnProcessor):
    """A picture that attends to a text and, but for modules with cross-attention only, to itself in one product.

    DeepFloyd IF's UNets are made of it. Takes the place of ``AttnAddedKVProcessor2_0``.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend: (batch, channels, height, width) or (batch, channels, tokens), returned in the same shape."""
        residual = hidden_states
        hidden_states = hidden_states.flatten(2).transpose(1, 2)
        mask = _mask(attn, attention_mask, hidden_states)
        if encoder_hidden_states is None:
            encoder_hidden_states = hidden_states
        elif attn.norm_cross is not None:
            encoder_hidden_states = attn.norm_encoder_hidden_states(encoder_hidden_states)
        hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        keys, values = [attn.add_k_proj(encoder_hidden_states)], [attn.add_v_proj(encoder_hidden_states)]
        if not attn.only_cross_attention:
            keys.append(attn.to_k(hidden_states))
            values.append(attn.to_v(hidden_states))
        key, value = (
            split_attention_heads(attn, torch.cat(keys, dim=1)),
            split_attention_heads(attn, torch.cat(values, dim=1)),
        )
        attended = self.attend(split_attention_heads(attn, attn.to_q(hidden_states)), key, value, mask)
        out: torch.Tensor = attn.to_out[1](attn.to_out[0](attended))
        return out.transpose(1, 2).reshape(residual.shape) + residual


def split_attention_heads(attn: Attention, tokens: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, channels) to (batch, tokens, heads, head size), the dispatcher's layout."""
    return tokens.view(*tokens.shape[:2], attn.heads, -1)


def normed_query_and_key(attn: Attention, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and key through the norms that the module has for them."""
    if attn.norm_q is not None:
        query = attn.norm_q(query)
    if attn.norm_k is not None:
        key = attn.norm_k(key)
    return query, key


def project_query_key_value(
    attn: Attention, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query (batch, queries, inner), key and value (batch, keys, inner)."""
    context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    if encoder_hidden_states is not None and attn.norm_cross is not None:
        context = attn.norm_encoder_hidden_states(encoder_hidden_states)
    if not attn.fused_projections:
        return attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
    if attn.is_cross_attention:
        key, value = attn.to_kv(context).chunk(2, dim=-1)
        return attn.to_q(hidden_states), key, value
    if encoder_hidden_states is not None:
        raise ValueError("self-attention, whose q, k and v are fused, was given something else to attend to")
    query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
    return query, key, value


def _mask(attn: Attention, mask: torch.Tensor | None, context: torch.Tensor) -> torch.Tensor | None:
    """The additive mask as (batch, heads, 1 or queries, keys), the dispatcher's layout."""
    if mask is None:
        return None
    batch, keys, _ = context.shape
    mask = attn.prepare_attention_mask(mask, keys, batch)
    return mask.view(batch, attn.heads, -1, mask.shape[-1])
