"""Video object propagation, DINO's (arXiv:2104.14294, section 4.2.1): the labels of the first frame carried on.

Each patch of a frame takes the labels of those five patches of the first frame and of the seven frames before that are
most like it (cosine), at most twelve patches away, weighed by exp(cosine / 0.1). Nothing is trained. A frame passes on
shares of labels, not decisions; a decision for each pixel is made of the shares enlarged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

Grid = tuple[int, int]
LARGEST = 2**24
"""similarities at a time"""


@dataclass(frozen=True)
class Propagation:
    """Settings, by default the published ones."""

    before: int = 7
    """frames besides the first one that labels come from"""
    radius: int = 12
    """patches up and down, left and right"""
    temperature: float = 0.1
    nearest: int = 5


def carried(
    frames: Iterable[Float[Tensor, "n d"]],
    first: Float[Tensor, "n c"],
    grid: Grid,
    settings: Propagation | None = None,
) -> Iterator[Float[Tensor, "n c"]]:
    """Shares of labels in the second and each later frame, from those of the first; features of patches row by row."""
    settings = settings or Propagation()
    start: Tensor | None = None
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=settings.before)
    for features in frames:
        features = F.normalize(features, dim=-1)
        if start is None:
            start = features
            continue
        sources = torch.stack([start, *(each for each, _ in recent)])
        labels = torch.stack([first, *(each for _, each in recent)])
        shares = step(features, sources, labels, grid, settings)
        recent.append((features, shares))
        yield shares


def step(
    target: Float[Tensor, "n d"],
    sources: Float[Tensor, "t n d"],
    labels: Float[Tensor, "t n c"],
    grid: Grid,
    settings: Propagation,
) -> Float[Tensor, "n c"]:
    """Shares of labels for one frame from ``t`` others; features have length one.

    Patches as near as the fifth nearest count too. Rows are taken a few at a time, with what is in their reach only.
    """
    h, w = grid
    t, r = len(sources), settings.radius
    source_maps, label_maps = sources.unflatten(1, grid), labels.unflatten(1, grid)
    columns = torch.arange(w, device=target.device)
    apart = (columns[:, None] - columns[None, :]).abs() > r
    height = max(1, LARGEST // (t * w * w * min(h, 2 * r + 1)))
    found: list[Tensor] = []
    for top in range(0, h, height):
        bottom = min(top + height, h)
        low, high = max(0, top - r), min(h, bottom + r)
        near = source_maps[:, low:high].flatten(0, 2)
        cosine = target[top * w : bottom * w] @ near.T
        rows = torch.arange(top, bottom, device=target.device)[:, None]
        too_far = (rows - torch.arange(low, high, device=target.device)).abs() > r
        outside = too_far[:, None, None, :, None] | apart[None, :, None, None, :]
        cosine.view(bottom - top, w, t, high - low, w).masked_fill_(outside, -torch.inf)
        least = cosine.topk(min(settings.nearest, cosine.shape[1])).values[:, -1:]
        weights = (cosine / settings.temperature).exp().masked_fill_(cosine < least, 0.0)
        found.append(weights @ label_maps[:, low:high].flatten(0, 2) / weights.sum(1, keepdim=True))
    return torch.cat(found)


def decided(shares: Float[Tensor, "n c"], grid: Grid, shape: tuple[int, int]) -> Int64[Tensor, "h w"]:
    """A label for each pixel of the frame that was encoded, of this shape.

    Shares are enlarged linearly, those of each label stretched to [0, 1], and the largest one decides.
    """
    maps = shares.T.unflatten(1, grid)
    large = F.interpolate(maps[None], size=shape, mode="bilinear", align_corners=False)[0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    return ((large - low) / (high - low).clamp_min(1e-12)).argmax(0)
