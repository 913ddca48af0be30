"""Where a patch is: sin-cos tables, rotary embeddings, resampling of learned tables.

Grids are (rows, columns) of patches, or (times, rows, columns); tables list patches row by row, the first moment first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def sincos_2d(
    grid: tuple[int, int], width: int, *, trained: tuple[int, int] | None = None
) -> Float[Tensor, "n d"]:
    """The fixed sine-cosine table of MAE (arXiv:2111.06377, official convention), float32.

    The first half of the channels encodes the column, the second half the row, each as sines then cosines.
    For a ``grid`` other than the ``trained`` one the same functions are sampled more densely or coarsely, so
    that the table spans what it spanned in training.
    Raises ValueError when the width does not split into four equal parts.
    """
    if width % 4:
        raise ValueError(
            f"Sin-cos positions need a width divisible by 4, got width={width}. "
            f"Use {4 * math.ceil(width / 4)}."
        )
    rows, columns = (
        (torch.arange(n, dtype=torch.float64) + 0.5) * (m / n) - 0.5
        for n, m in zip(grid, trained or grid, strict=True)
    )
    periods = 10_000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def encode(coordinates: Tensor) -> Tensor:
        angles = coordinates[:, None] / periods
        return torch.cat([angles.sin(), angles.cos()], dim=1)  # n d/2

    by_column = encode(columns).expand(len(rows), -1, -1)
    by_row = encode(rows)[:, None].expand(-1, len(columns), -1)
    return torch.cat([by_column, by_row], dim=-1).flatten(0, 1).float()


def resample(
    table: Float[Tensor, "b n d"],
    trained: tuple[int, ...],
    grid: tuple[int, ...],
    *,
    offset: float = 0.0,
    antialias: bool = True,
) -> Float[Tensor, "b m d"]:
    """A learned table, or the patches of images, for another grid: bicubic, with gradient.

    ``offset`` > 0 (DINO: 0.1) repeats the published DINO code instead: a scale factor of (size + offset) /
    trained size, which also sets the sampling positions, and no antialiasing.
    """
    if grid == trained:
        return table
    image = table.unflatten(1, trained).permute(0, 3, 1, 2)  # 1 d rows columns
    if offset > 0:
        scale = [(n + offset) / m for n, m in zip(grid, trained, strict=True)]
        image = F.interpolate(image, scale_factor=scale, mode="bicubic")
    else:
        image = F.interpolate(image, size=grid, mode="bicubic", antialias=antialias)
    return image.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class Rotary:
    """Angles of a rotary embedding, as sine and cosine of each token and channel of a head."""

    sin: Tensor
    """ "n c" for all images alike, or "b 1 n c" """
    cos: Tensor
    neighbours: bool = False
    """channels 2i and 2i + 1 turn together, instead of i and i + c/2"""

    def keep(self, indices: Int[Tensor, "b m"]) -> Rotary:
        """The angles of some of the patches, image by image."""
        rows = indices[:, None, :, None]
        sin, cos = (x.expand(len(rows), 1, -1, -1).take_along_dim(rows, 2) for x in (self.sin, self.cos))
        return replace(self, sin=sin, cos=cos)

    def after(self, n: int) -> Rotary:
        """With ``n`` tokens that are not turned (cls, registers) put before the patches."""
        return replace(self, sin=F.pad(self.sin, (0, 0, n, 0)), cos=F.pad(self.cos, (0, 0, n, 0), value=1.0))

    def __call__(self, x: Float[Tensor, "b h n c"]) -> Float[Tensor, "b h n c"]:
        """Rotate queries or keys."""
        if self.neighbours:
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        else:
            first, second = x.chunk(2, dim=-1)
            turned = torch.cat([-second, first], dim=-1)
        return (x * self.cos + turned * self.sin).to(x.dtype)


def rotary_2d(
    grid: tuple[int, int],
    channels: int,
    *,
    base: float = 100.0,
    warp: Float[Tensor, "b 2 2"] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Rotary:
    """Axial rotary embedding of DINOv3 (arXiv:2508.10104) for heads of ``channels`` channels.

    Patch centres are put in [-1, 1] on each axis, so a grid of any size spans the same angles. A quarter of
    the channels turns with the row, a quarter with the column; the other half are their partners. ``warp`` has a
    (factor, offset) of the rows and one of the columns of each image: centre x is then put at factor * x + offset.
    Raises ValueError when the channels do not split into four equal parts.
    """
    if channels % 4:
        raise ValueError(
            f"Rotary positions need heads whose width is divisible by 4, got {channels} channels a head. "
            "Change width or heads."
        )
    periods = base ** (torch.arange(channels // 4, dtype=dtype, device=device) / (channels // 4))
    rows, columns = ((torch.arange(n, dtype=dtype, device=device) + 0.5) * (2 / n) - 1 for n in grid)
    centres = torch.cartesian_prod(rows, columns)  # n 2
    if warp is not None:
        centres = warp[:, None, None, :, 0] * centres + warp[:, None, None, :, 1]  # b 1 n 2
    angles = (2 * math.pi * centres.unsqueeze(-1) / periods).flatten(-2).tile(2)  # ... n channels
    return Rotary(angles.sin(), angles.cos())


@dataclass(frozen=True)
class Warp:
    """DINOv3's random changes of positions while training, for `rotary_2d`; by default none.

    Each axis is moved, then stretched, then both are stretched alike; stretches are log-uniform and may as well shrink.
    Raises ValueError for a negative shift and for stretches below 1.
    """

    shift: float = 0.0
    """greatest move of an axis, which spans -1 to 1"""
    jitter: float = 1.0
    """greatest factor of an axis"""
    rescale: float = 1.0
    """greatest factor of both axes"""

    def __post_init__(self) -> None:
        if self.shift < 0 or min(self.jitter, self.rescale) < 1:
            raise ValueError(
                f"{self}: positions are moved by up to shift and stretched by up to jitter and rescale times. "
                "Use shift >= 0, jitter >= 1 and rescale >= 1."
            )

    def draw(self, u: Float[Tensor, "b 5"]) -> Float[Tensor, "b 2 2"]:
        """(factor, offset) of rows and of columns, from uniform numbers in [0, 1)."""
        either_way = 2 * u - 1
        factor = self.jitter ** either_way[:, 2:4] * self.rescale ** either_way[:, 4:]
        return torch.stack([factor, factor * self.shift * either_way[:, :2]], dim=-1)
