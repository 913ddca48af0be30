"""Images sampled elsewhere, as Pillow's affine transform does: a cubic of 4 x 4 pixels around each point.

    output(x, y) = input(x', y')        (x', y') = M (x, y, 1), in pixels, centres at halves

The kernel is Pillow's for transforms, with a = -1 (its resize has -0.5). Edges are repeated; where (x', y') lies
outside, a colour stands. Values are cut off to whole numbers, as there: single precision therefore leaves about one in
ten thousand one lower or higher.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Matrix = Float[Tensor, "n 2 3"]


def warp(image: UInt8[Tensor, "n 3 h w"], matrix: Matrix, fill: tuple[int, ...]) -> UInt8[Tensor, "n 3 h w"]:
    """Each image by its own matrix (on the CPU); ``fill`` is the colour of what lies outside."""
    height, width = image.shape[-2:]
    device = image.device
    to = matrix.float().to(device)[..., None, None]  # n 2 3 1 1
    column, row = (torch.arange(side, device=device) + 0.5 for side in (width, height))
    x, y = (to[:, :, 0] * column + to[:, :, 1] * row[:, None] + to[:, :, 2]).unbind(1)  # n h w
    outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
    left, top = (x - 0.5).floor(), (y - 0.5).floor()
    columns = [(left + i).clamp_(0, width - 1).long() for i in range(-1, 3)]
    pixels = image.float().flatten(2)
    across = (x - 0.5 - left)[:, None]
    rows = []
    for j in range(-1, 3):
        start = (top + j).clamp_(0, height - 1).long() * width
        places = [(start + column).flatten(1)[:, None].expand_as(pixels) for column in columns]
        rows.append(_cubic([pixels.gather(2, place).view(image.shape) for place in places], across))
    sampled = _cubic(rows, (y - 0.5 - top)[:, None]).clamp_(0, 255).to(torch.uint8)
    colour = torch.tensor(fill, dtype=torch.uint8, device=device)[:, None, None]
    return torch.where(outside[:, None], colour, sampled)


def _cubic(values: list[Tensor], d: Tensor) -> Tensor:
    """Between the second and the third of four values, ``d`` of the way; where all are equal, exactly that."""
    a, b, c, e = values
    return b + d * ((c - a) + d * ((2 * (a - b) + (c - e)) + d * ((b - a) + (e - c))))


def rotation(angle: Float[Tensor, " n"], height: int, width: int) -> Matrix:
    """By ``angle`` in radians, counter-clockwise, around the centre."""
    cos, sin, x, y = angle.cos(), angle.sin(), width / 2, height / 2
    return _matrix((cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y))


def shear_x(push: Float[Tensor, " n"]) -> Matrix:
    """Each row sampled so many pixels further right than the one above."""
    one, none = torch.ones_like(push), torch.zeros_like(push)
    return _matrix((one, push, none), (none, one, none))


def shear_y(push: Float[Tensor, " n"]) -> Matrix:
    """Each column sampled so many pixels further down than the one to its left."""
    one, none = torch.ones_like(push), torch.zeros_like(push)
    return _matrix((one, none, none), (push, one, none))


def translation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Matrix:
    """Sampled so many pixels further right and down."""
    one, none = torch.ones_like(x), torch.zeros_like(x)
    return _matrix((one, none, x), (none, one, y))


def _matrix(to_x: tuple[Tensor, ...], to_y: tuple[Tensor, ...]) -> Matrix:
    return torch.stack([torch.stack(to_x, dim=-1), torch.stack(to_y, dim=-1)], dim=1)
