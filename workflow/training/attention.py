"""Attention written out: softmax(q k / sqrt(d)) v, for training.

Fused attentions differ between devices and versions; one of them broke the backward pass on a GPU
at these shapes, and masks that text encoders build on the host cannot be captured in a CUDA graph.
The matrices here are 88 x 88, so that writing them out costs little. Nothing is made on the host.
"""

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from torch import nn
from transformers import CLIPTextModel, T5EncoderModel


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of queries, keys and values ``(b, tokens, heads, channels)``; the same shape."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).transpose(1, 2)


class Processor:
    """What diffusers calls for the attention of a FLUX block, in place of its own processor."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attention over picture tokens, in a double block together with the caption's."""

        def heads(states: torch.Tensor) -> torch.Tensor:
            return states.unflatten(-1, (-1, attn.head_dim))

        query = attn.norm_q(heads(attn.to_q(hidden_states)))
        key = attn.norm_k(heads(attn.to_k(hidden_states)))
        value = heads(attn.to_v(hidden_states))
        if encoder_hidden_states is not None:
            own_query = attn.norm_added_q(heads(attn.add_q_proj(encoder_hidden_states)))
            own_key = attn.norm_added_k(heads(attn.add_k_proj(encoder_hidden_states)))
            own_value = heads(attn.add_v_proj(encoder_hidden_states))
            query = torch.cat([own_query, query], dim=1)
            key = torch.cat([own_key, key], dim=1)
            value = torch.cat([own_value, value], dim=1)
        query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
        key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        states = attend(query, key, value).flatten(2)
        if encoder_hidden_states is None:
            return states
        words, picture = states.tensor_split([encoder_hidden_states.shape[1]], dim=1)
        return attn.to_out[1](attn.to_out[0](picture)), attn.to_add_out(words)


def write_out(transformer: FluxTransformer2DModel, clip: CLIPTextModel, t5: T5EncoderModel) -> None:
    """Let the three parts of a pipeline use attention that is written out."""
    transformer.set_attn_processor(Processor())
    clip.set_attn_implementation("eager")
    t5.set_attn_implementation("eager")


def words_of(t5: T5EncoderModel, ids: torch.Tensor) -> torch.Tensor:
    """What ``t5(ids)[0]`` gives, ``(b, tokens, width)``, with its mask made on the device."""
    weight, tokens = t5.shared.weight, ids.shape[1]
    mask = torch.zeros(1, 1, tokens, tokens, dtype=weight.dtype, device=weight.device)
    return t5(ids, attention_mask=mask)[0]


def pooled_of(clip: CLIPTextModel, ids: torch.Tensor) -> torch.Tensor:
    """What ``clip(ids).pooler_output`` gives, ``(b, width)``, with its mask made on the device."""
    weight, tokens = next(clip.parameters()), ids.shape[1]
    lowest = torch.finfo(weight.dtype).min
    mask = torch.full(
        (1, 1, tokens, tokens), lowest, dtype=weight.dtype, device=weight.device
    ).triu(1)
    return clip(ids, attention_mask=mask).pooler_output
