"""The narrow transformer of joint-embedding predictive methods."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from visrep.nn.positions import Rotary
from visrep.nn.positions_video import Grid, rotary_3d, sincos_3d
from visrep.nn.transformer import Block, linear


@final
class Predictor(nn.Module):
    """I-JEPA's predictor (arXiv:2301.08243): from the tokens of a context, those at other places.

    Places are vectors of the predictor's ``width`` that the caller brings, so a grid may have any number of axes; or
    they are rotary, and these vectors 0. Each set of places is asked for on its own: it sees the context and itself,
    not the other sets. There is a mask token for each of ``kinds`` of masks.
    """

    def __init__(self, n_in: int, *, width: int, depth: int, heads: int, kinds: int = 1) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.embed = linear(n_in, width)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(kinds, 1, 1, width), std=0.02))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.project = linear(width, n_in)

    def forward(
        self,
        context: Float[Tensor, "b m d"],
        context_at: Float[Tensor, "b m e"],
        asked_at: Float[Tensor, "b k q e"],
        *,
        rotary: Rotary | None = None,
        kind: int = 0,
    ) -> Float[Tensor, "b k q d"]:
        """Predict k sets of q tokens an image from its m context tokens.

        ``rotary`` has the angles of the context's and then of the asked tokens, set by set.
        """
        k, q = asked_at.shape[1:3]
        seen = (self.embed(context) + context_at).unsqueeze(1).expand(-1, k, -1, -1)
        x = torch.cat([seen, self.mask_token[kind] + asked_at], dim=2).flatten(0, 1)
        for block in self.blocks:
            x = block(x, rotary)
        return self.project(self.norm(x[:, -q:])).unflatten(0, (-1, k))

    def of_clips(
        self,
        context: Float[Tensor, "b m d"],
        keep: Int[Tensor, "b m"],
        asked: Int[Tensor, "b q"],
        grid: Grid,
        *,
        rotary: bool,
        kind: int = 0,
    ) -> Float[Tensor, "b q d"]:
        """Predict one set of q patches of clips, told where these lie in the grid by angles or by a table of sines."""
        dtype = torch.promote_types(context.dtype, torch.float32)
        if not rotary:
            table = sincos_3d(grid, self.width).to(context.device, dtype)
            return self(context, table[keep], table[asked].unsqueeze(1), kind=kind)[:, 0]
        nowhere = context.new_zeros(())
        angles = rotary_3d(grid, self.width // self.heads, device=context.device, dtype=dtype)
        angles = angles.keep(torch.cat([keep, asked], dim=1))
        at_keep, at_asked = (nowhere.expand(*at.shape, self.width) for at in (keep, asked))
        return self(context, at_keep, at_asked.unsqueeze(1), rotary=angles, kind=kind)[:, 0]
