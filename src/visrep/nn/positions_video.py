"""Where a patch of a clip is: tables and rotary embeddings for grids of (times, rows, columns).

A table for another grid than the ``trained`` one samples the same functions more densely or coarsely, so that it spans
what it spanned in training.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from visrep.nn.positions import Rotary

Grid = tuple[int, ...]
"""times, rows, columns"""


def sincos_3d(grid: Grid, width: int, *, trained: Grid | None = None) -> Float[Tensor, "n d"]:
    """The fixed table of V-JEPA (arXiv:2404.08471), float32: a third of the channels for time, row and column each.

    Each third has sines, then cosines. Where the width does not divide by 6, thirds are a little wider and the last
    channels are left out. Raises ValueError for an odd width.
    """
    _check_even(width)
    quarter = math.ceil(width / 6)  # sines of one axis
    periods = 10_000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = _coordinates(grid, trained).unsqueeze(-1) / periods  # n 3 k
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width].float()


def sincos_sequence(grid: Grid, width: int, *, trained: Grid | None = None) -> Float[Tensor, "n d"]:
    """The fixed table of VideoMAE (arXiv:2203.12602), float32: that of Transformers for text, along all patches.

    Even channels are sines and odd ones cosines of the patch's number, moment by moment and row by row.
    Raises ValueError for an odd width.
    """
    _check_even(width)
    _, rows, columns = trained or grid
    number = _coordinates(grid, trained) @ torch.tensor([rows * columns, columns, 1], dtype=torch.float64)
    periods = 10_000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = number.unsqueeze(-1) / periods
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def rotary_3d(
    grid: Grid, channels: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Rotary:
    """Rotary embedding of V-JEPA 2 (arXiv:2506.09985) for heads of ``channels`` channels.

    About a third of the channels turns with the time, the row and the column each; up to seven that are left over stay.
    As published: neighbouring channels turn together, yet angles are listed twice over instead of each twice in a row,
    so that the two of a pair turn by different angles. Raises ValueError for heads of fewer than 6 channels.
    """
    pairs = channels // 6
    if not pairs:
        raise ValueError(
            f"Rotary positions of clips need heads of at least 6 channels, got {channels}. Change width or heads."
        )
    periods = 10_000 ** (torch.arange(pairs, dtype=dtype, device=device) / pairs)
    place = _coordinates(grid, None).to(device, dtype)
    angles = (place.unsqueeze(-1) / periods).tile(2).flatten(1)  # n (3 2 pairs)
    still = angles.new_zeros(len(angles), channels - angles.shape[1])
    angles = torch.cat([angles, still], dim=1)
    return Rotary(angles.sin(), angles.cos(), neighbours=True)


def _coordinates(grid: Grid, trained: Grid | None) -> Float[Tensor, "n 3"]:
    """Time, row and column of each patch, counted in patches of the trained grid."""
    axes = (
        (torch.arange(n, dtype=torch.float64) + 0.5) * (m / n) - 0.5
        for n, m in zip(grid, trained or grid, strict=True)
    )
    return torch.cartesian_prod(*axes)


def _check_even(width: int) -> None:
    if width % 2:
        raise ValueError(f"Sin-cos positions need an even width, got width={width}. Use {width + 1}.")
