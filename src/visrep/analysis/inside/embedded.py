"""Directions of patches, small enough to go into a page: cosines between any two, within an error that is measured.

Vectors of length one are reduced to as many dimensions as there is room for: the leading singular directions, which
lose the least of all inner products. A random rotation spreads what is left evenly over the dimensions, so that eight
bits each, with one scale for all, lose little more.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor

BYTES = 384 * 2**10
"""of all vectors, at most: half a megabyte as text"""
ERROR = 0.05
"""of a cosine, above which fewer images are embedded"""
ROWS = 1024
"""compared at a time"""


@dataclass(frozen=True, eq=False)
class Embedded:
    """Vectors of patches; a cosine is the inner product of two, times the squared scale."""

    vectors: Int8[np.ndarray, "n p k"]
    scale: float
    error: float
    """the largest of a cosine, over all pairs of patches"""

    @property
    def text(self) -> str:
        """The vectors in base64, image by image, patch by patch."""
        return base64.b64encode(self.vectors.tobytes()).decode()


def embedded(patches: Float[Tensor, "n p d"]) -> Embedded:
    """Vectors of as many images, the first ones, as fit with cosines within 0.05; of one image in any case."""
    found = _embedded(patches)
    while found.error > ERROR and len(found.vectors) > 1:
        found = _embedded(patches[: len(found.vectors) - 1])
    return found


def _embedded(patches: Float[Tensor, "n p d"]) -> Embedded:
    n, p, d = patches.shape
    unit = F.normalize(patches.double().cpu(), dim=-1).flatten(0, 1)
    k = max(1, min(d, BYTES // (n * p)))
    directions = torch.linalg.eigh(unit.T @ unit).eigenvectors[:, -k:]
    drawn = torch.randn(k, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    small = unit @ (directions @ torch.linalg.qr(drawn).Q)
    scale = max(float(small.abs().max()) / 127, torch.finfo(torch.float32).tiny)
    bytes_ = (small / scale).round().to(torch.int8)
    error = _largest_error(unit.float(), bytes_.float() * scale)
    return Embedded(bytes_.unflatten(0, (n, p)).numpy(), scale, error)


def _largest_error(unit: Float[Tensor, "m d"], small: Float[Tensor, "m k"]) -> float:
    parts = zip(unit.split(ROWS), small.split(ROWS), strict=True)
    return max(float((rows @ unit.T - few @ small.T).abs().max()) for rows, few in parts)
