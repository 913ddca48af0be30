"""The light decoder of masked autoencoders."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from visrep.method import Tokens
from visrep.nn.positions import sincos_2d
from visrep.nn.transformer import Block


@final
class MaskedDecoder(nn.Module):
    """MAE's decoder (arXiv:2111.06377): visible tokens and mask tokens in their places, blocks, a linear map.

    Positions are fixed sines and cosines for a ``grid`` of (rows, columns) patches; a cls token takes part
    when the encoder has one, without a position.
    """

    position: Tensor

    def __init__(
        self, n_in: int, n_out: int, grid: tuple[int, int], *, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(n_in, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("position", sincos_2d(grid, width), persistent=False)  # n d
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, n_out)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, visible: Tokens, keep: Int[Tensor, "b m"], hidden: Int[Tensor, "b q"]
    ) -> Float[Tensor, "b n k"]:
        """Predict every patch, in image order; ``keep`` and ``hidden`` say which were and were not seen."""
        x = self.embed(visible.patches)
        masked = self.mask_token.to(x.dtype).expand(len(x), hidden.shape[1], -1)
        place = torch.cat([keep, hidden], dim=1).argsort(dim=1)  # where each patch lies in [visible, masked]
        x = torch.cat([x, masked], dim=1).gather(1, place.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        x = x + self.position
        if visible.cls is not None:
            x = torch.cat([self.embed(visible.cls).unsqueeze(1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.predict(self.norm(x))
        return x if visible.cls is None else x[:, 1:]
