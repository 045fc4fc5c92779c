"""The reference denoiser's forward, rearranged to train 1.7 times faster on a CPU.

The mathematics is FluxTransformer2DModel's, the parameters are its own; `tests/test_training.py` holds the two against
each other. What differs: text and picture tokens are joined once before the single-stream blocks instead of in each,
attention over 92 tokens is two plain matrix products, and the blocks are one function for `torch.compile`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import Tensor, nn

Rotary = tuple[Tensor, Tensor]


class PlainAttention:
    """An attention processor for short sequences."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key = _heads(attn, query, attn.norm_q), _heads(attn, key, attn.norm_k)
        if encoder_hidden_states is not None:
            text = encoder_hidden_states
            query = torch.cat([_heads(attn, attn.add_q_proj(text), attn.norm_added_q), query], 1)
            key = torch.cat([_heads(attn, attn.add_k_proj(text), attn.norm_added_k), key], 1)
            value = torch.cat([attn.add_v_proj(text), value], 1)
        query, key = _rotate(query, image_rotary_emb).transpose(1, 2), _rotate(key, image_rotary_emb).transpose(1, 2)
        scores = torch.softmax(query * query.shape[-1] ** -0.5 @ key.mT, -1)
        out = (scores @ value.unflatten(-1, (attn.heads, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return out
        context, out = out.split([encoder_hidden_states.shape[1], hidden_states.shape[1]], 1)
        return attn.to_out[1](attn.to_out[0](out)), attn.to_add_out(context)


def _heads(attn: FluxAttention, x: Tensor, norm: nn.RMSNorm) -> Tensor:
    return F.rms_norm(x.unflatten(-1, (attn.heads, -1)), (x.shape[-1] // attn.heads,), norm.weight, 1e-6)


def _rotate(x: Tensor, rotary: Rotary | None) -> Tensor:
    assert rotary is not None
    cos, sin = (t[None, :, None].to(x.dtype) for t in rotary)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack([-odd, even], -1).flatten(-2) * sin


def blocks(model: FluxTransformer2DModel, hidden: Tensor, text: Tensor, temb: Tensor, rotary: Rotary) -> Tensor:
    """All blocks: (B, 64, 128), (B, 28, 128), (B, 128) to (B, 64, 128)."""
    for block in model.transformer_blocks:
        text, hidden = block(hidden_states=hidden, encoder_hidden_states=text, temb=temb, image_rotary_emb=rotary)
    both, temb = torch.cat([text, hidden], 1), F.silu(temb)
    for block in model.single_transformer_blocks:
        shift, scale, gate = block.norm.linear(temb)[:, None].chunk(3, -1)
        normed = torch.addcmul(shift, block.norm.norm(both), 1 + scale)
        attended = block.attn(normed, image_rotary_emb=rotary)
        mlp = F.gelu(block.proj_mlp(normed), approximate="tanh")
        left, right = block.proj_out.weight.split([attended.shape[-1], mlp.shape[-1]], 1)
        both = torch.addcmul(both, gate, F.linear(attended, left) + F.linear(mlp, right, block.proj_out.bias))
    return both[:, text.shape[1] :]


class FastDenoiser(nn.Module):
    """Velocity (B, 64, 48) from packed latents (B, 64, 48), word features, sentence vector, and sigma in [0, 1]."""

    def __init__(self, model: FluxTransformer2DModel, positions: Tensor, *, compiled: bool) -> None:
        super().__init__()
        self.model = model
        self.rotary: Any = model.pos_embed(positions)
        for module in model.modules():
            if isinstance(module, FluxAttention):
                module.set_processor(PlainAttention())
        self.blocks: Callable[[FluxTransformer2DModel, Tensor, Tensor, Tensor, Rotary], Tensor] = (
            torch.compile(blocks) if compiled else blocks
        )

    def forward(self, latents: Tensor, words: Tensor, sentence: Tensor, sigma: Tensor) -> Tensor:
        temb = self.model.time_text_embed(sigma.float() * 1000, sentence)
        hidden = self.blocks(
            self.model, self.model.x_embedder(latents), self.model.context_embedder(words), temb, self.rotary
        )
        return self.model.proj_out(self.model.norm_out(hidden, temb))
