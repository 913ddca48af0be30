"""Positions of patches computed from tensors alone, so that one trace serves images of every size.

The same numbers as `visrep.nn.positions`, whose functions choose by the size of the grid: a trace would keep the choice
that it saw. Resampling is linear, so it is a matrix along rows and one along columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from visrep.nn.positions import Rotary


def numbered(n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """0 ... n - 1, and n itself as a tensor."""
    steps = torch.arange(n).to(dtype)
    return steps, torch.ones_like(steps).sum()


def cubic(distance: Tensor, a: float) -> Tensor:
    """The weight of a sample at a distance, of cubic convolution with parameter ``a``."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))


def resampling(n_in: int, n_out: int, *, offset: Tensor, antialias: bool) -> Tensor:
    """Weights "n_out n_in" of torch's bicubic interpolation of a line; see `visrep.nn.positions.resample`."""
    steps, size = numbered(n_out)
    if antialias:
        scale = n_in / size
        centres = torch.arange(n_in) + 0.5
        distance = (centres - ((steps + 0.5) * scale)[:, None]).abs() / scale.clamp(min=1)
        weights = cubic(distance, -0.5)
        return weights / weights.sum(1, keepdim=True)
    at = (steps + 0.5) * (n_in / (size + offset)) - 0.5
    taps = at.floor()[:, None] + torch.arange(-1, 3)  # n_out 4
    weights = cubic((at[:, None] - taps).abs(), -0.75)
    column = taps.clamp(0, n_in - 1)  # beyond the border, the last sample repeats
    return (weights[..., None] * (column[..., None] == torch.arange(n_in))).sum(1)


def learned(table: Tensor, rows: int, columns: int, *, offset: float, antialias: bool) -> Tensor:
    """A learned table "rows columns d", resampled for a grid: "n d"."""
    sizes = torch.stack([numbered(rows)[1], numbered(columns)[1]])
    resized = (
        sizes != torch.tensor(table.shape[:2])
    ).any()  # else the table stays as it is, also with an offset
    moved, antialias = resized * offset, antialias and not offset
    by_row = resampling(table.shape[0], rows, offset=moved, antialias=antialias)
    by_column = resampling(table.shape[1], columns, offset=moved, antialias=antialias)
    d = table.shape[2]
    stretched = (by_row @ table.flatten(1)).unflatten(1, (-1, d))  # new rows, old columns
    return (by_column @ stretched).flatten(0, 1)


def sincos(grid: tuple[int, int], rows: int, columns: int, width: int) -> Tensor:
    """`visrep.nn.positions.sincos_2d` of a table trained on ``grid``, for other rows and columns: "n d"."""
    periods = 10_000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def encode(n: int, trained: int) -> Tensor:
        steps, size = numbered(n, torch.float64)
        angles = ((steps + 0.5) * (trained / size) - 0.5)[:, None] / periods
        return torch.cat([angles.sin(), angles.cos()], dim=1).float()

    by_row, by_column = encode(rows, grid[0])[:, None], encode(columns, grid[1])[None]
    shape = torch.zeros_like(by_row + by_column)
    return torch.cat([by_column + shape, by_row + shape], dim=-1).flatten(0, 1)


def rotary(rows: int, columns: int, channels: int, front: int) -> Rotary:
    """`visrep.nn.positions.rotary_2d` after ``front`` tokens that are not turned."""
    periods = 100.0 ** (torch.arange(channels // 4, dtype=torch.float32) / (channels // 4))

    def centres(n: int) -> Tensor:
        steps, size = numbered(n)
        return (steps + 0.5) * (2 / size) - 1

    by_row, by_column = centres(rows)[:, None], centres(columns)[None]
    shape = torch.zeros_like(by_row + by_column)
    places = torch.stack([by_row + shape, by_column + shape], dim=-1).flatten(0, 1)  # n 2
    angles = (2 * math.pi * places.unsqueeze(-1) / periods).flatten(1).tile(2)
    angles = torch.cat([torch.zeros(front, channels), angles])
    return Rotary(angles.sin(), angles.cos())
