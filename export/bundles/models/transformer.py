"""Transformers that guide a flow by a context: what stands below ``context_blocks`` in the four-flow UNet.

Sub-module names equal the keys of the published checkpoint.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32


class Attention(nn.Module):
    """Multi-head attention; keys and values are given, so that they can be computed once per decode.

    ``x`` is (B or 1, N, channels): one row of queries may face the keys of several contexts.
    """

    def __init__(self, channels: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, context_dim) → keys and values, each (B, heads, L, channels / heads)."""
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        queries = self._split(self.to_q(x))
        queries = queries.expand(len(keys), *queries.shape[1:])
        y = F.scaled_dot_product_attention(queries, keys, values)
        return self.to_out(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class GEGLU(nn.Module):
    """Gated GELU (arXiv 2002.05202): (…, channels) → (…, inner)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        # The weight is cut, not the product: cutting that would copy the largest tensor of the block.
        (weight, gate_weight), (bias, gate_bias) = self.proj.weight.chunk(2), self.proj.bias.chunk(2)
        return F.linear(x, weight, bias) * F.gelu(F.linear(x, gate_weight, gate_bias))


class FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, channels: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.attn1 = Attention(channels, channels, heads)
        self.ff = FeedForward(channels)
        self.attn2 = Attention(channels, context_dim, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn1(y, *self.attn1.keys_values(y))
        x = x + self.attn2(self.norm2(x), keys, values)
        return x + self.ff(self.norm3(x))


class ContextTransformer(nn.Module):
    """Cross-attention of the tokens of a flow to one context. Returns the change, without the residual."""

    def __init__(self, channels: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, context_dim, heads)])
        self.proj_out = nn.Linear(channels, channels)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.transformer_blocks[0].attn2.keys_values(context)  # type: ignore[union-attr, operator, no-any-return]

    def forward(self, h: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        x = self.proj_in(self.norm(h).flatten(2).transpose(1, 2))
        x = self.proj_out(self.transformer_blocks[0](x, keys, values))
        return x.transpose(1, 2).unflatten(2, h.shape[2:])
