"""Crop, antialiased resize, mirror and blur: all linear and separable, so one matrix an axis, ``A_y X A_x^T``.

The matrices have few entries a row, near a diagonal. Small images, and all on a GPU, are multiplied whole, many at
a time. Large ones on a CPU are multiplied one by one, in tiles of rows that leave out most of what is zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]
RADIUS: dict[Interpolation, int] = {"bilinear": 1, "bicubic": 2}
EDGE = 1e-3
"""a box that reaches less than this into a pixel does not use it: fractions are rounded numbers"""
BLUR_REACH = 4
"""a Gaussian is cut off at this many standard deviations"""
TILE = 32
"""rows of a view in a tile"""
WHOLE = 4e6
"""floating-point operations an image up to which a CPU does not use tiles"""


@dataclass(frozen=True)
class Resize:
    """What all views made at once have in common."""

    canvas: int
    """side of the canvas in pixels"""
    size: int
    """side of the view in pixels"""
    interpolation: Interpolation
    widest: float
    """greatest sigma of a blur, 0 if there is none"""
    rows: int
    """rows of a tile; ``size`` for a single one"""

    @property
    def taps(self) -> int:
        """Canvas pixels a row of the view looks at: as many as the largest box needs, so that no view depends on
        the others."""
        return min(self.canvas, int(2 * RADIUS[self.interpolation] * max(self.canvas / self.size, 1.0)) + 2)

    @property
    def halo(self) -> int:
        """Rows around a tile that the widest blur looks at."""
        return min(self.size - 1, math.ceil(BLUR_REACH * self.widest))

    @property
    def window(self) -> int:
        """Canvas pixels a tile looks at, at most."""
        if self.rows == self.size:
            return self.canvas
        spread = math.ceil((self.rows + 2 * self.halo) * max(self.canvas / self.size, 1.0))
        return min(self.canvas, spread + self.taps + 1)


def plan_resize(
    canvas: int, size: int, interpolation: Interpolation, widest: float, device: torch.device
) -> Resize:
    """Choose the tiles: a single one on a GPU and for small images."""
    work = 6 * size * canvas * (canvas + size)
    rows = TILE if device.type == "cpu" and size > TILE and work > WHOLE else size
    return Resize(canvas, size, interpolation, widest, rows)


@dataclass(frozen=True)
class Axis:
    """The matrices of one axis of n views, in t tiles of r rows, of which only a window of w columns is stored."""

    tiles: Float[Tensor, "n t r w"]
    left: Int[Tensor, "n t"]
    """column with which a window starts"""
    right: Int[Tensor, "n t"]
    """column before which the entries in it end"""


def make_axis(
    start: Float[Tensor, " n"],
    length: Float[Tensor, " n"],
    mirrored: Bool[Tensor, " n"],
    sigma: Float[Tensor, " n"],
    how: Resize,
) -> Axis:
    """Matrices that cut ``length`` canvas pixels from ``start``, resize them, mirror and blur.

    The filter of the resize is PIL's and torchvision's antialiasing one (bicubic with a = -0.5), stretched when
    shrinking; it sees only pixels of the box, as if that had been cropped first. The blur is a true Gaussian of
    ``sigma`` pixels of the view (0 for none), its edges mirrored as torchvision's.
    """
    halo, device = how.halo, start.device
    offset = torch.arange(-halo, how.rows + halo, device=device)
    row = (torch.arange(0, how.size, how.rows, device=device)[:, None] + offset).abs_()
    row = torch.minimum(row, 2 * (how.size - 1) - row).clamp_(
        min=0
    )  # t e: the tile's and, mirrored, those around
    first, weight = _filter(start, length, mirrored, row, how)

    if how.rows == how.size:
        left = torch.zeros_like(first[:, :, 0])
        right = left + how.canvas
    else:
        reach = (BLUR_REACH * sigma).ceil_()[:, None, None]
        needed = (offset >= -reach) & (offset < how.rows + reach)  # n 1 e
        left = torch.where(needed, first, how.canvas).amin(2)
        right = torch.where(needed, first, 0).amax(2) + how.taps
    column = (first - left[:, :, None])[..., None] + torch.arange(how.taps, device=device)
    column = column.clamp_(0, how.window - 1)  # rows that are not needed may lie outside
    spread = torch.zeros(*first.shape, how.window, device=device).scatter_(3, column, weight)  # n t e w
    tiles = spread[:, :, halo : halo + how.rows]
    blurred = sigma.nonzero()[:, 0]
    if len(blurred):
        blur = _blur(sigma[blurred], how)[:, None].expand(-1, tiles.shape[1], -1, -1)
        tiles = tiles.index_copy(0, blurred, torch.matmul(blur, spread[blurred]))
    return Axis(tiles, left, right)


def _filter(
    start: Float[Tensor, " n"],
    length: Float[Tensor, " n"],
    mirrored: Bool[Tensor, " n"],
    row: Int[Tensor, "t e"],
    how: Resize,
) -> tuple[Int[Tensor, "n t e"], Float[Tensor, "n t e taps"]]:
    """First canvas pixel and weights of some rows of the views."""
    start, length, mirrored = (x[:, None, None] for x in (start, length, mirrored))
    step = length / how.size
    stretch = step.clamp(min=1.0)
    centre = torch.where(mirrored, how.size - 0.5 - row, 0.5 + row) * step + start
    first = (centre - RADIUS[how.interpolation] * stretch).floor_().clamp_(0, how.canvas - how.taps)
    tap = first[..., None] + torch.arange(how.taps, device=start.device)
    distance = (tap + (0.5 - centre[..., None])).abs_().div_(stretch[..., None])
    weight = _bicubic(distance) if how.interpolation == "bicubic" else (1 - distance).clamp_(min=0)
    weight *= tap >= torch.floor(start + EDGE)[..., None]
    weight *= tap < torch.ceil(start + length - EDGE)[..., None]
    return first.long(), weight.div_(weight.sum(3, keepdim=True))


def _bicubic(distance: Tensor) -> Tensor:
    """The cubic convolution kernel with a = -0.5, 0 from a distance of 2 on."""
    far = distance.clamp_(max=2)
    near = (1 - far).clamp_(min=0)
    return ((2.5 - 0.5 * far).mul_(far).sub_(4)).mul_(far).add_(2).addcmul_(near.square(), 1 - 2 * near)


def _blur(sigma: Float[Tensor, " m"], how: Resize) -> Float[Tensor, "m r e"]:
    """Gaussian weights with which a row of a tile sees the rows of the tile and around it."""
    device = sigma.device
    distance = torch.arange(how.rows, device=device)[:, None] - torch.arange(
        -how.halo, how.rows + how.halo, device=device
    )
    reach = (BLUR_REACH * sigma).ceil_()[:, None, None]
    weight = torch.exp(-0.5 * (distance / sigma[:, None, None]) ** 2)
    weight *= distance.abs() <= reach
    return weight / weight.sum(2, keepdim=True)


def transform(
    pixels: UInt8[Tensor, "b c s s"], index: Int[Tensor, " n"], y: Axis, x: Axis, how: Resize
) -> Float[Tensor, "n c o o"]:
    """``A_y X A_x^T`` of each channel of some images, as values from 0 to 1."""
    out = torch.empty(len(index), pixels.shape[1], how.size, how.size, device=pixels.device)
    if how.rows == how.size:
        _multiply_whole(pixels.index_select(0, index), y, x, out)
    else:
        _multiply_tiles(pixels, index, y, x, out)
    return out.mul_(1 / 255).clamp_(0, 1)


def _multiply_whole(pixels: Tensor, y: Axis, x: Axis, out: Tensor) -> None:
    n, c, s, _ = pixels.shape
    o = out.shape[-1]
    image = torch.empty(n, s, c, s, device=out.device).copy_(pixels.transpose(1, 2))
    half = torch.bmm(y.tiles[:, 0], image.view(n, s, c * s)).view(n, o * c, s)
    whole = torch.bmm(half, x.tiles[:, 0].transpose(1, 2))
    out.copy_(whole.view(n, o, c, o).transpose(1, 2))


def _multiply_tiles(pixels: Tensor, index: Tensor, y: Axis, x: Axis, out: Tensor) -> None:
    c, s = pixels.shape[1:3]
    o, r = out.shape[-1], y.tiles.shape[2]
    half_store, whole = torch.empty(o * c * s), torch.empty(o * c, o)
    bounds = (part.tolist() for part in (index, y.left, y.right, x.left, x.right))
    for n, (b, tops, bottoms, lefts, rights) in enumerate(zip(*bounds, strict=True)):
        top, bottom, left, right = min(tops), max(bottoms), min(lefts), max(rights)
        h, w = bottom - top, right - left
        image = (
            torch.empty(h, c, w).copy_(pixels[b, :, top:bottom, left:right].transpose(0, 1)).view(h, c * w)
        )
        half = half_store[: o * c * w].view(o, c * w)
        for i, tile, start, end in zip(range(0, o, r), y.tiles[n], tops, bottoms, strict=True):
            part = half[i : i + r]
            torch.mm(tile[: len(part), : end - start], image[start - top : end - top], out=part)
        half = half.view(o * c, w)
        for i, tile, start, end in zip(range(0, o, r), x.tiles[n], lefts, rights, strict=True):
            part = whole[:, i : i + r]
            torch.mm(half[:, start - left : end - left], tile[: part.shape[1], : end - start].t(), out=part)
        out[n].copy_(whole.view(o, c, o).transpose(0, 1))
