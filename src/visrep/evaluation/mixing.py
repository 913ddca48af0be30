"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899): each image with another, its label with the other's.

    x <- a x + (1 - a) x'       y <- a y + (1 - a) y'       a ~ Beta(alpha, alpha), one for the whole batch

x' is the batch in reverse order. CutMix pastes a box of x' into x instead of adding them: its sides are sqrt(1 - a)
of the image's, its centre lies anywhere, and the a of the labels is the share of x that is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Mixing:
    """What is done to a batch, by default as in MAE (arXiv:2111.06377) and DeiT."""

    mixup: float = 0.8
    """alpha of mixup"""
    cutmix: float = 1.0
    """alpha of CutMix"""
    probability: float = 1.0
    """of mixing a batch at all; mixup and CutMix are then equally likely"""
    smoothing: float = 0.1
    """share of each label that is spread over all classes"""


Box = tuple[int, int, int, int]
"""top, bottom, left, right in pixels, bottom and right excluded"""


def mix(
    images: Float[Tensor, "b *c h w"],
    labels: Int64[Tensor, " b"],
    k: int,
    how: Mixing,
    rng: np.random.Generator,
) -> tuple[Float[Tensor, "b *c h w"], Float[Tensor, "b k"]]:
    """Mixed images (or clips) and their targets, which sum to 1."""
    targets = F.one_hot(labels, k) * (1 - how.smoothing) + how.smoothing / k
    if rng.random() >= how.probability:
        return images, targets
    cut = rng.random() < 0.5
    alpha = how.cutmix if cut else how.mixup
    a = float(rng.beta(alpha, alpha))
    if cut:
        height, width = images.shape[-2:]
        top, bottom, left, right = draw_box(height, width, 1 - a, rng)
        a = 1 - (bottom - top) * (right - left) / (height * width)
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
    else:
        mixed = torch.lerp(images.flip(0), images, a)
    return mixed, a * targets + (1 - a) * targets.flip(0)


def draw_box(height: int, width: int, area: float, rng: np.random.Generator) -> Box:
    """A box of this share of the area before what lies outside the image is cut off."""
    tall, wide = int(height * area**0.5), int(width * area**0.5)
    y, x = int(rng.integers(0, height)), int(rng.integers(0, width))
    top, bottom = max(0, y - tall // 2), min(height, y + (tall + 1) // 2)
    left, right = max(0, x - wide // 2), min(width, x + (wide + 1) // 2)
    return top, bottom, left, right
