"""Crop, antialiased resize, mirror and blur: all linear and separable, so one matrix an axis, ``A_y X A_x^T``.

The matrices have few entries a row, near a diagonal. Small images, and all on a GPU, are multiplied whole, many at
a time. Large ones on a CPU are multiplied one by one: the rows of a matrix are cut into tiles, and a tile sees a
window of the image just wide enough. Windows of one image are equally wide and equally spaced, so that overlapping
views of its memory are one batched matrix product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from visrep.method import Interpolation

RADIUS: dict[Interpolation, int] = {"bilinear": 1, "bicubic": 2}
EDGE = 1e-3
"""a box that reaches less than this into a pixel does not use it: fractions are rounded numbers"""
BLUR_REACH = 4
"""a Gaussian is cut off at this many standard deviations"""
TILE = 16
"""rows of a tile, at least"""
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
    tiles: int
    """into how many tiles the rows of a matrix are cut; divides ``size``"""

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        return self.size // self.tiles

    @property
    def taps(self) -> int:
        """Canvas pixels that a row looks at: enough for the largest box, so that no view depends on another."""
        return min(self.canvas, int(2 * RADIUS[self.interpolation] * max(self.canvas / self.size, 1.0)) + 2)

    @property
    def halo(self) -> int:
        """Rows around a tile that the widest blur looks at."""
        return min(self.size - 1, math.ceil(BLUR_REACH * self.widest))


def plan_resize(
    canvas: int, size: int, interpolation: Interpolation, widest: float, device: torch.device
) -> Resize:
    """Choose the tiles: a single one on a GPU and for small images."""
    work = 6 * size * canvas * (canvas + size)
    most = size // TILE if device.type == "cpu" and work > WHOLE else 1
    tiles = max(t for t in range(1, max(most, 1) + 1) if size % t == 0)
    return Resize(canvas, size, interpolation, widest, tiles)


@dataclass(frozen=True)
class Axis:
    """The matrices of one axis of n views, in t tiles of r rows, of which a window of w columns is stored."""

    tiles: Float[Tensor, "n r t w"]
    start: Int[Tensor, " n"]
    """column with which the first window starts, negative where it reaches beyond the canvas"""
    step: Int[Tensor, " n"]
    """columns from one window to the next"""
    width: Int[Tensor, " n"]
    """columns of the windows that have entries"""
    mirrored: Bool[Tensor, " n"]
    """whether the last tile makes the first pixels of the view"""


def make_axes(
    boxes: Float[Tensor, "n 4"], mirrored: Bool[Tensor, " n"], sigma: Float[Tensor, " n"], how: Resize
) -> tuple[Axis, Axis]:
    """Matrices down and across that cut out ``boxes`` (top, left, height, width), resize, mirror and blur them.

    Boxes are in canvas pixels. The filter of the resize is PIL's and torchvision's antialiasing one (bicubic with
    a = -0.5), stretched when shrinking; it sees only pixels of the box, as if that had been cropped first. The blur
    is a true Gaussian of ``sigma`` pixels of the view (0 for none), its edges mirrored as torchvision's.
    """
    n = len(boxes)
    start, length = boxes[:, :2].t().flatten(), boxes[:, 2:].t().flatten()  # 2n: all tops, then all lefts
    both = _make_axis(start, length, torch.cat([torch.zeros_like(mirrored), mirrored]), sigma, how)
    parts = (both.tiles, both.start, both.step, both.width, both.mirrored)
    return Axis(*(x[:n] for x in parts)), Axis(*(x[n:] for x in parts))


def _make_axis(start: Tensor, length: Tensor, mirrored: Tensor, sigma: Tensor, how: Resize) -> Axis:
    device, halo, last = start.device, how.halo, how.size - 1
    tile = torch.arange(how.tiles, device=device)
    around = torch.arange(-halo, how.rows + halo, device=device)
    backwards = how.rows - 1 - around
    around = torch.where(mirrored[:, None], backwards, around)[..., None]  # n e 1: a tile and its halo
    row = (around + how.rows * tile).abs_()
    row = torch.minimum(row, 2 * last - row)  # n e t: mirrored at the edges, as blurs see it
    filters = _Filter(start, length, how)
    first = filters.first(row)
    weight = filters.weight(row, first)

    if how.tiles == 1:
        step = begin = torch.zeros_like(first[:, 0, 0])
        width = begin + how.canvas
        window, column = how.canvas, first
    else:
        step = (length * (how.rows / how.size)).floor_().long()
        reach = (BLUR_REACH * sigma).ceil_().clamp_(max=halo).long().repeat(2)[:, None, None]
        ahead = step[:, None, None] * tile  # n 1 t
        begin = (filters.first(how.rows * tile - reach) - ahead).amin((1, 2))
        end = (filters.first(how.rows * tile + how.rows - 1 + reach) - ahead).amax((1, 2)) + how.taps
        width = end - begin
        window = int(width.max())
        column = first - ahead - begin[:, None, None]
        column.clamp_(0, window - how.taps)  # rows further away than the blur looks may lie outside
    index = column + filters.tap
    tiles = torch.zeros(*first.shape, window, device=device)  # n e t w
    tiles.scatter_(3, index.permute(1, 2, 3, 0), weight.permute(1, 2, 3, 0))
    return Axis(_blur(tiles, sigma, how) if halo else tiles, begin, step, width, mirrored)


def _blur(
    tiles: Float[Tensor, "m e t w"], sigma: Float[Tensor, " n"], how: Resize
) -> Float[Tensor, "m r t w"]:
    """Blur tiles: each row becomes a Gaussian mean of the rows of the tile and its halo. Axes (m = 2n) blur alike."""
    still = tiles[:, how.halo : how.halo + how.rows]
    blurred = sigma.nonzero()[:, 0]
    row = torch.arange(how.rows, device=sigma.device)
    distance = row[:, None] - torch.arange(-how.halo, how.rows + how.halo, device=sigma.device)  # r e
    deviation = sigma[blurred, None, None]
    weight = torch.exp(-0.5 * (distance / deviation) ** 2)
    weight *= distance.abs() <= (BLUR_REACH * deviation).ceil()
    weight /= weight.sum(2, keepdim=True)
    both = torch.cat([blurred, blurred + len(sigma)])
    made = torch.bmm(weight.repeat(2, 1, 1), tiles.index_select(0, both).flatten(2))
    return still.index_copy(0, both, made.view(len(both), *still.shape[1:]))


class _Filter:
    """The interpolation filters of some boxes."""

    def __init__(self, start: Float[Tensor, " n"], length: Float[Tensor, " n"], how: Resize) -> None:
        self.how, self.start = how, start[:, None, None]
        self.step = length[:, None, None] / how.size
        self.stretch = self.step.clamp(min=1.0)
        self.low = torch.floor(self.start + EDGE)
        self.high = torch.ceil(self.start + length[:, None, None] - EDGE)
        # There are few taps: as the first axis they are fast, as the last they would be slow.
        self.tap = torch.arange(how.taps, device=start.device)[:, None, None, None]

    def centre(self, row: Int[Tensor, "n e t"]) -> Float[Tensor, "n e t"]:
        return torch.addcmul(self.start, row + 0.5, self.step)

    def first(self, row: Int[Tensor, "n e t"]) -> Int[Tensor, "n e t"]:
        """The first of the ``how.taps`` canvas pixels that rows of the view look at."""
        first = (self.centre(row) - RADIUS[self.how.interpolation] * self.stretch).floor_()
        low = self.low.clamp(max=self.how.canvas - self.how.taps)
        return torch.minimum(first, self.high - self.how.taps).maximum(low).long()

    def weight(self, row: Int[Tensor, "n e t"], first: Int[Tensor, "n e t"]) -> Float[Tensor, "taps n e t"]:
        """Weights of these pixels, their sum 1."""
        nearest = (first + 0.5 - self.centre(row)) / self.stretch
        distance = (nearest + self.tap / self.stretch).abs_()
        if self.how.interpolation == "bicubic":
            weight = _bicubic(distance)
        else:
            weight = (1 - distance).clamp_(min=0)
        if (self.high - self.low < self.how.taps).any():
            pixel = first + self.tap
            weight *= (pixel >= self.low) & (pixel < self.high)
        return weight.div_(weight.sum(0))


def _bicubic(distance: Tensor) -> Tensor:
    """The cubic convolution kernel with a = -0.5, twice: a polynomial on [1, 2], and a correction on [0, 1]."""
    far = distance.neg_().add_(2).clamp_(min=0)
    near = far - 1
    weight = far.square_().mul_(near)
    near.clamp_(min=0)
    return weight.addcmul_(near.square(), torch.rsub(near, 2, alpha=4))


def transform(
    pixels: UInt8[Tensor, "b c s s"], index: Int[Tensor, " n"], y: Axis, x: Axis, how: Resize
) -> Float[Tensor, "n c o o"]:
    """``A_y X A_x^T`` of each channel of some images, as values from 0 to 1."""
    out = torch.empty(len(index), pixels.shape[1], how.size, how.size, device=pixels.device)
    if how.tiles == 1:
        _multiply_whole(pixels.index_select(0, index), y, x, out)
    else:
        _multiply_tiles(pixels, index, y, x, out)
    return out


def _multiply_whole(pixels: Tensor, y: Axis, x: Axis, out: Tensor) -> None:
    n, c, s, _ = pixels.shape
    o = out.shape[-1]
    image = torch.empty(n, s, c, s, device=out.device).copy_(pixels.transpose(1, 2))
    half = torch.empty(n, o, c * s, device=out.device)
    torch.baddbmm(half, y.tiles[:, :, 0], image.view(n, s, c * s), beta=0, alpha=1 / 255, out=half)
    half = half.view(n, o * c, s)
    whole = torch.bmm(half, x.tiles[:, :, 0].transpose(1, 2))
    torch.clamp(whole.view(n, o, c, o).transpose(1, 2), 0, 1, out=out)


def _multiply_tiles(pixels: Tensor, index: Tensor, y: Axis, x: Axis, out: Tensor) -> None:
    """One image at a time, from the part of it that the windows see.

    Where windows reach beyond the canvas their weights are 0; what lies there in memory need only be finite.
    """
    c, s = pixels.shape[1:3]
    o, (r, t, most) = out.shape[-1], y.tiles.shape[1:]
    beyond = most + t
    image_store, half_store = torch.zeros((s + 2 * beyond) * c * s), torch.zeros(o * c * s + 2 * beyond)
    image_room, half_room = image_store[beyond * c * s :], half_store[beyond:]
    whole = torch.empty(t, o * c, r)
    blocks = whole.view(t, o, c, r).transpose(1, 2).unbind(0)
    parts = (index, y.start, y.step, y.width, x.start, x.step, x.width, x.mirrored)
    for n, (b, top, down, tall, left, across, wide, mirrored) in enumerate(
        zip(*(part.tolist() for part in parts), strict=True)
    ):
        rows = slice(max(top, 0), top + (t - 1) * down + tall)
        columns = slice(max(left, 0), left + (t - 1) * across + wide)
        box = pixels[b, :, rows, columns].transpose(0, 1)
        h, w = box.shape[0], box.shape[2]
        image_room[: h * c * w].view(h, c, w).copy_(box)
        begin = beyond * c * s + min(top, 0) * c * w
        windows = image_store.as_strided((t, tall, c * w), (down * c * w, c * w, 1), begin)
        half = half_room[: o * c * w].view(t, r, c * w)
        torch.baddbmm(half, y.tiles[n, :, :, :tall].transpose(0, 1), windows, beta=0, alpha=1 / 255, out=half)
        windows = half_store.as_strided((t, o * c, wide), (across, w, 1), beyond + min(left, 0))
        torch.bmm(windows, x.tiles[n, :, :, :wide].permute(1, 2, 0), out=whole)
        torch.cat(blocks[::-1] if mirrored else blocks, dim=2, out=out[n]).clamp_(0, 1)
