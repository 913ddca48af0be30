"""The light decoder of masked autoencoders, for patches and for cells of other sizes."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from visrep.method import Tokens
from visrep.nn.positions import sincos_2d
from visrep.nn.positions_video import sincos_3d, sincos_sequence
from visrep.nn.transformer import Block


@final
class MaskedDecoder(nn.Module):
    """MAE's decoder (arXiv:2111.06377): visible tokens and mask tokens in their places, blocks, a linear map.

    Positions are fixed sines and cosines, MAE's for a ``grid`` of (rows, columns) patches; for one of (times, rows,
    columns) VideoMAE's along all patches, or V-JEPA's ``by_axis``. A cls token takes part when the encoder has one,
    without a position.
    """

    position: Tensor

    def __init__(
        self,
        n_in: int,
        n_out: int,
        grid: tuple[int, ...],
        *,
        width: int,
        depth: int,
        heads: int,
        by_axis: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(n_in, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        of_clips = sincos_3d if by_axis else sincos_sequence
        position = sincos_2d(grid, width) if len(grid) == 2 else of_clips(grid, width)
        self.register_buffer("position", position, persistent=False)  # n d
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, n_out)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, visible: Tokens, keep: Int[Tensor, "b m"], hidden: Int[Tensor, "b q"], *, with_cls: bool = False
    ) -> Float[Tensor, "b n k"]:
        """Predict every patch, in image order; ``keep`` and ``hidden`` say which were and were not seen.

        ``with_cls`` puts a prediction of the cls token first, when the encoder has one.
        """
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
        return x if visible.cls is None or with_cls else x[:, 1:]


@final
class CellDecoder(nn.Module):
    """LocalMIM's decoder (arXiv:2303.05251): MAE's, then a head for cells of other sizes than a patch.

    ``n_out`` numbers a cell. The published head upsamples with transposed convolutions, or takes means over patches,
    before a linear layer. Linear maps in a row are one, and a mean commutes with them: only cells of a quarter of a
    patch, which are reached in two steps with an activation between, need a second layer here.
    Raises ValueError for cells that are not a quarter or half of a patch, a patch, or squares of patches.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        grid: tuple[int, int],
        *,
        patch: int,
        cell: int,
        width: int,
        depth: int,
        heads: int,
    ) -> None:
        super().__init__()
        whole = cell >= patch and cell % patch == 0 and all(n % (cell // patch) == 0 for n in grid)
        if not whole and cell not in (patch / 4, patch / 2):
            raise ValueError(
                f"Cells of {cell} pixels do not fit {grid[0]} x {grid[1]} patches of {patch} pixels. "
                "Use a quarter or half of a patch, a patch, or a multiple of it that divides the image."
            )
        self.grid, self.pool = grid, max(1, cell // patch)
        fine = width // 2
        n_patch = {patch: n_out, patch / 2: 4 * n_out, patch / 4: 4 * fine}.get(cell, n_out)
        self.decode = MaskedDecoder(n_in, n_patch, grid, width=width, depth=depth, heads=heads)
        self.refine = None
        if cell == patch / 4:
            self.refine = nn.Sequential(nn.LayerNorm(fine, eps=1e-6), nn.GELU(), nn.Linear(fine, 4 * n_out))

    def forward(
        self, visible: Tokens, keep: Int[Tensor, "b m"], hidden: Int[Tensor, "b q"]
    ) -> Float[Tensor, "b n k"]:
        """Predict, in image order, every patch, as its cells row by row, or every cell that holds patches."""
        x = self.decode(visible, keep, hidden)
        if self.refine is not None:  # each quarter of the area, then each quarter of that
            x = self.refine(x.unflatten(-1, (2, 2, -1))).unflatten(
                -1, (2, 2, -1)
            )  # b n row column row column k
            return x.transpose(3, 4).flatten(2)
        return mean_of_squares(x, self.grid, self.pool)


def mean_of_squares(x: Float[Tensor, "b n k"], grid: tuple[int, int], side: int) -> Float[Tensor, "b m k"]:
    """The mean of ``side`` x ``side`` neighbouring patches."""
    image = x.transpose(1, 2).unflatten(-1, grid)  # b k rows columns
    return F.avg_pool2d(image, side).flatten(2).transpose(1, 2)
