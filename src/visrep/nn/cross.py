"""Attention of some tokens to others, and the transformer block made of it."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from visrep.nn.transformer import Mlp, linear


@final
class CrossAttention(nn.Module):
    """Multi-head attention of "b q d" tokens to others of width ``n_in``. Raises ValueError for uneven heads."""

    def __init__(self, width: int, heads: int, *, n_in: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"width={width} does not split into heads={heads} equal heads. Change one of them."
            )
        self.heads = heads
        self.q = linear(width, width)
        self.k = linear(n_in, width, bias=False)  # a bias would add the same to all scores of a token
        self.v = linear(n_in, width)
        self.proj = linear(width, width)

    def forward(
        self, x: Float[Tensor, "b q d"], keys: Float[Tensor, "b n e"], values: Float[Tensor, "b n e"]
    ) -> Float[Tensor, "b q d"]:
        projected = (self.q(x), self.k(keys), self.v(values))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in projected)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@final
class CrossBlock(nn.Module):
    """x + attention(norm(x), others), then x + mlp(norm(x)): tokens that do not see one another."""

    def __init__(self, width: int, heads: int, *, n_in: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.cross_attn = CrossAttention(width, heads, n_in=n_in)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Float[Tensor, "b q d"], others: Float[Tensor, "b n e"]) -> Float[Tensor, "b q d"]:
        x = x + self.cross_attn(self.norm1(x), others, others)
        return x + self.mlp(self.norm2(x))
