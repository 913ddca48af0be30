"""The narrow transformer of joint-embedding predictive methods."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from visrep.nn.positions import Rotary
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

    def at_rotary(
        self, context: Float[Tensor, "b m d"], rotary: Rotary, *, kind: int = 0
    ) -> Float[Tensor, "b q d"]:
        """Predict one set of q tokens where places are rotary alone: those of the context, then of what is asked."""
        b, m = context.shape[:2]
        nowhere = context.new_zeros(()).expand(b, 1, rotary.sin.shape[-2] - m, len(self.norm.weight))
        return self(context, nowhere[:, 0, :1].expand(-1, m, -1), nowhere, rotary=rotary, kind=kind)[:, 0]
