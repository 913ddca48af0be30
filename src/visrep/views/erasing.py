"""Random erasing (arXiv:1708.04896): a box of an image becomes noise, as timm does it by pixel.

    area ~ U(0.02, 1/3) of the image        height / width = exp(U(log 0.3, log 1/0.3))        place uniform

Of ten boxes the first that is smaller than the image both ways is taken; none if none is. Images are normalised, so
that standard normal numbers are about as large as what they replace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visrep.method import At

TRIES = 10


@final
@dataclass(frozen=True)
class Erasing:
    """How boxes are drawn, by default as for MAE and DeiT."""

    probability: float = 0.25
    """of erasing anything of an image"""
    area: tuple[float, float] = (0.02, 1 / 3)
    """least and greatest share of the image"""
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """least and greatest height / width, log-uniform between"""


def erase(images: Float[Tensor, "b *t 3 h w"], how: Erasing, at: At) -> Float[Tensor, "b *t 3 h w"]:
    """Normalised images, or clips that lose the same box of every frame, some of them with a box of noise.

    Random numbers come from ``at`` alone, one row an image; what becomes of an image depends on its row only.
    """
    height, width = images.shape[-2:]
    top, bottom, left, right = (
        draw_boxes(how, len(images), height, width, at).to(images.device)[..., None].unbind(1)
    )
    row, column = (torch.arange(side, device=images.device) for side in (height, width))
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)  # b h, b w
    erased = (rows[:, :, None] & columns[:, None]).view(-1, *[1] * (images.ndim - 3), height, width)
    return torch.where(erased, at.randn(*images.shape).to(images), images)


def draw_boxes(how: Erasing, b: int, height: int, width: int, at: At) -> Int[Tensor, "b 4"]:
    """Top, bottom, left and right of each image's box in pixels, bottom and right excluded; all 0 for none."""
    u = at.rand(b, 2 * TRIES + 3).cpu().double()
    area = (how.area[0] + u[:, :TRIES] * (how.area[1] - how.area[0])) * height * width
    low, high = map(math.log, how.aspect)
    aspect = torch.exp(low + u[:, TRIES:-3] * (high - low))
    tall, wide = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (tall < height) & (wide < width)
    first = fits.int().argmax(1, keepdim=True)
    tall, wide = tall.gather(1, first)[:, 0], wide.gather(1, first)[:, 0]
    top, left = (u[:, -3] * (height - tall + 1)).floor(), (u[:, -2] * (width - wide + 1)).floor()
    erased = fits.any(1) & (u[:, -1] < how.probability)
    return (torch.stack([top, top + tall, left, left + wide], dim=1) * erased[:, None]).long()
