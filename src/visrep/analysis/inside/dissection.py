"""Network dissection (arXiv:1704.05796): which channels are detectors of which concepts?

Of each channel the threshold that a share of 0.005 of all its activations, over all places of all images, exceeds; the
places above it, enlarged to the masks, are compared with each concept: intersection over union, counted over the whole
set. A channel is a detector of its best concept where that is above 0.04. Concepts need not lie on axes: the same with
the channels turned by a random rotation says what is due to the basis, and the best of many concepts is high by chance,
which shows there, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

SHARE = 0.005
"""of activations above the threshold"""
DETECTS = 0.04
"""intersection over union from which a channel counts as a detector"""
CHUNK = 32
"""channels enlarged at a time"""


@dataclass(frozen=True, eq=False)
class Dissection:
    """Channels against concepts."""

    names: tuple[str, ...]
    iou: Float[np.ndarray, "d k"]

    @property
    def best(self) -> list[tuple[int, str, float]]:
        """Channel, its best concept and their IoU, the highest first."""
        concept = self.iou.argmax(1)
        value = self.iou[np.arange(len(self.iou)), concept]
        order = np.argsort(-value, kind="stable")
        return [(int(i), self.names[concept[i]], float(value[i])) for i in order]

    @property
    def detectors(self) -> int:
        """Channels that detect some concept."""
        return int((self.iou.max(1) > DETECTS).sum())

    @property
    def detected(self) -> dict[str, int]:
        """How many detectors each concept has, those that have any, most first."""
        found = [name for _, name, value in self.best if value > DETECTS]
        return {name: found.count(name) for name in sorted(set(found), key=lambda n: (-found.count(n), n))}


def dissect(
    activations: Float[Tensor, "n d rows columns"],
    masks: Bool[Tensor, "n k h w"],
    names: tuple[str, ...],
) -> Dissection:
    """IoU of every channel with every concept."""
    both, active = overlaps(activations, top_threshold(activations), masks)
    area = masks.sum((0, 2, 3)).double()
    return Dissection(names, ratio(both.sum(0), active.sum(0)[:, None] + area).numpy())


def overlaps(
    activations: Float[Tensor, "n d rows columns"],
    thresholds: Float[Tensor, " d"],
    masks: Bool[Tensor, "n k h w"],
) -> tuple[Float[Tensor, "n d k"], Float[Tensor, "n d"]]:
    """Pixels of each image, float64: above a channel's threshold and in a concept's mask; above the threshold."""
    size = masks.shape[-2:]
    flat = masks.flatten(2).float()  # n k pixels
    both, active = [], []
    for part, threshold in zip(activations.split(CHUNK, dim=1), thresholds.split(CHUNK), strict=True):
        large = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
        above = (large > threshold[:, None, None]).flatten(2).float()
        both.append(torch.einsum("ndp,nkp->ndk", above, flat))
        active.append(above.sum(2))
    return torch.cat(both, 1).double(), torch.cat(active, 1).double()


def ratio(both: Float[Tensor, "*s"], areas: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Intersection over union, of the intersection and the sum of both areas; 0 where both are empty."""
    either = areas - both
    return torch.where(either > 0, both / either.clamp_min(1), 0)


def top_threshold(activations: Float[Tensor, "n d rows columns"]) -> Float[Tensor, " d"]:
    """Of each channel: at most a share of 0.005 of its activations lies above."""
    flat = activations.transpose(0, 1).flatten(1)
    above = int(SHARE * flat.shape[1])
    return flat.kthvalue(flat.shape[1] - above, dim=1).values


def turned(activations: Float[Tensor, "n d rows columns"], seed: int) -> Float[Tensor, "n d rows columns"]:
    """The same activations in a random orthonormal basis."""
    d = activations.shape[1]
    gaussian = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    rotation = (q * r.diagonal().sign()).to(activations.dtype)
    return torch.einsum("ndrc,de->nerc", activations, rotation)
