"""The decoder of LatentMIM: queries that ask visible patches by cross-attention."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from visrep.nn.cross import CrossAttention
from visrep.nn.positions import sincos_2d
from visrep.nn.transformer import Attention, Mlp


@final
class QueryBlock(nn.Module):
    """Queries attend to each other, then to what was seen, then go through an MLP; norms before each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.norm_seen = nn.LayerNorm(width, eps=1e-6)
        self.cross_attn = CrossAttention(width, heads, n_in=width)
        self.norm3 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Float[Tensor, "b n d"], seen: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        x = x + self.attn(self.norm1(x))
        seen = self.norm_seen(seen)
        x = x + self.cross_attn(self.norm2(x), seen, seen)
        return x + self.mlp(self.norm3(x))


@final
class CrossDecoder(nn.Module):
    """LatentMIM's decoder (arXiv:2407.15837): queries for hidden patches, which never mix with the visible ones.

    A query starts as a learned token plus the mean of the visible patches, weighted by how alike their positions are to
    its own. One more query, without a position, takes part and is thrown away. Positions are fixed sines and cosines
    for a ``grid`` of (rows, columns).
    """

    position: Tensor

    def __init__(self, n_in: int, grid: tuple[int, int], *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(n_in, width)
        self.register_buffer("position", sincos_2d(grid, width), persistent=False)  # n e
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.cls_token = nn.Parameter(nn.init.normal_(torch.empty(1, 1, width), std=0.02))
        self.blocks = nn.ModuleList(QueryBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, n_in)

    def forward(
        self,
        patches: Float[Tensor, "b m d"],
        cls: Float[Tensor, "b d"] | None,
        keep: Int[Tensor, "b m"],
        hidden: Int[Tensor, "b q"],
    ) -> Float[Tensor, "b q d"]:
        """Predict hidden patches from visible ones and the cls token, where there is one."""
        visible, seen_at, asked_at = self.embed(patches), self.position[keep], self.position[hidden]
        alike = (asked_at @ seen_at.mT / seen_at.shape[-1] ** 0.5).softmax(-1)  # b q m
        x = self.mask_token + alike.to(visible) @ visible + asked_at
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        seen = visible + seen_at
        if cls is not None:
            seen = torch.cat([self.embed(cls).unsqueeze(1), seen], dim=1)
        for block in self.blocks:
            x = block(x, seen)
        return self.predict(self.norm(x[:, 1:]))
