"""Attention processors for the transformers in diffusers whose stock ones do not call the dispatcher. Imports torch.

Like those of ``unet.py`` they read fused projections, and the norms of query and key that diffusers' own
fused processor of Stable Diffusion 3 leaves out.
"""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb

from diffopt.steps.attention.unet import (
    DispatchAttnProcessor,
    normed_query_and_key,
    project_query_key_value,
    split_attention_heads,
)


class JointDispatchProcessor(DispatchAttnProcessor):
    """Picture and text attend to both, each with projections of its own: Stable Diffusion 3.

    Takes the place of ``JointAttnProcessor2_0``. Without text it is the self-attention of SD 3.5 medium's dual blocks.
    """

    def __call__(  # type: ignore[override]
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attend: (batch, tokens, channels) of the picture and of the text, returned in the same shapes.

        The mask is not read, as in the stock processor.
        """
        pixels = hidden_states.shape[1]
        query, key, value = (split_attention_heads(attn, x) for x in project_query_key_value(attn, hidden_states))
        query, key = normed_query_and_key(attn, query, key)
        if encoder_hidden_states is None:
            return _out(attn, self.attend(query, key, value))
        added = _project_added(attn, encoder_hidden_states)
        query, key, value = (torch.cat(both, dim=1) for both in zip((query, key, value), added, strict=True))
        attended = self.attend(query, key, value)
        text = attended[:, pixels:]
        if not attn.context_pre_only:
            text = attn.to_add_out(text)
        return _out(attn, attended[:, :pixels]), text


class CogVideoXDispatchProcessor(DispatchAttnProcessor):
    """Text and video as one sequence with one set of projections; the positions of the video turn query and key.

    Takes the place of ``CogVideoXAttnProcessor2_0``.
    """

    def __call__(  # type: ignore[override]
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend: (batch, tokens, channels) of the video and of the text, returned in the same shapes.

        attention_mask:    additive, (batch, 1, tokens) of both together
        image_rotary_emb:  cosines and sines, (tokens of the video, head size) each
        """
        words = encoder_hidden_states.shape[1]
        both = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, both.shape[1], both.shape[0])
            attention_mask = attention_mask.view(both.shape[0], attn.heads, -1, attention_mask.shape[-1])
        query, key, value = (split_attention_heads(attn, x) for x in project_query_key_value(attn, both))
        query, key = normed_query_and_key(attn, query, key)
        if image_rotary_emb is not None:
            query = _turned(query, words, image_rotary_emb)
            if not attn.is_cross_attention:
                key = _turned(key, words, image_rotary_emb)
        out = _out(attn, self.attend(query, key, value, attention_mask))
        return out[:, words:], out[:, :words]


class SanaDispatchProcessor(DispatchAttnProcessor):
    """Cross-attention whose norms of query and key are of all heads together: Sana.

    Takes the place of ``SanaAttnProcessor2_0``.
    """

    def _normed(self, attn: Attention, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        query, key = normed_query_and_key(attn, query, key)
        return split_attention_heads(attn, query), split_attention_heads(attn, key)


def _out(attn: Attention, attended: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = attn.to_out[1](attn.to_out[0](attended))
    return out


def _project_added(attn: Attention, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value of the text by heads, through their own norms."""
    if attn.fused_projections:
        query, key, value = attn.to_added_qkv(text).chunk(3, dim=-1)
    else:
        query, key, value = attn.add_q_proj(text), attn.add_k_proj(text), attn.add_v_proj(text)
    query, key, value = (split_attention_heads(attn, x) for x in (query, key, value))
    if attn.norm_added_q is not None:
        query = attn.norm_added_q(query)
    if attn.norm_added_k is not None:
        key = attn.norm_added_k(key)
    return query, key, value


def _turned(tokens: torch.Tensor, words: int, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """(batch, tokens, heads, head size) with the positions of all but the first ``words`` tokens applied."""
    turned = apply_rotary_emb(tokens[:, words:], rotary, sequence_dim=1)
    return torch.cat([tokens[:, :words], turned], dim=1)
