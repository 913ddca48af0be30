"""The convolutional decoder of data2vec 2.0."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@final
class ConvDecoder(nn.Module):
    """Convolutions of 3 x 3 patches, each with layer norm, GELU and a shortcut (arXiv:2212.07525).

    Grouped as in the official code, so that it costs a small part of the encoder. Raises ValueError for widths that do
    not split into the groups.
    """

    def __init__(self, n_in: int, *, width: int, depth: int, groups: int = 16) -> None:
        super().__init__()
        if n_in % groups or width % groups:
            raise ValueError(
                f"groups={groups} do not divide the widths {n_in} (encoder) and {width} (decoder). Change one of them."
            )
        self.convolutions = nn.ModuleList(
            nn.Conv2d(n_in if i == 0 else width, width, 3, padding=1, groups=groups) for i in range(depth)
        )

    def forward(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b n e"]:
        """Features of every patch of a grid of (rows, columns)."""
        x = tokens.mT.unflatten(2, grid)
        for convolution in self.convolutions:
            y = convolution(x).movedim(1, -1)
            y = F.gelu(F.layer_norm(y, y.shape[-1:])).movedim(-1, 1)
            x = x + y if x.shape == y.shape else y
        return x.flatten(2).mT
