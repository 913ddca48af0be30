"""How well a mask fits the true one: J, the share of the union that both have, and F, how well outlines agree.

As in the evaluation of DAVIS (arXiv:1704.00675): an outline is one pixel wide, half a pixel towards the top left of the
real one; a pixel of an outline is matched when the other outline passes within 0.8 % of the image's diagonal, rounded
up to pixels; F is the harmonic mean of the shares matched of both outlines.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool
from scipy.spatial import KDTree

TOLERANCE = 0.008
"""of the diagonal"""
Mask = Bool[np.ndarray, "h w"]


def jaccard(predicted: Mask, true: Mask) -> float:
    """Intersection over union; 1 when both are empty."""
    union = int((predicted | true).sum())
    return int((predicted & true).sum()) / union if union else 1.0


def boundary_f(predicted: Mask, true: Mask, *, tolerance: float = TOLERANCE) -> float:
    """F of two masks of one shape; 1 when neither has an outline, 0 when only one of them has."""
    reach = math.ceil(tolerance * math.hypot(*true.shape))
    outlines = outline(predicted), outline(true)
    points = [np.argwhere(each) for each in outlines]
    if not all(map(len, points)):
        return float(not any(map(len, points)))
    precision, recall = (
        float((KDTree(other).query(each)[0] <= reach).mean()) for each, other in (points, points[::-1])
    )
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


def outline(mask: Mask) -> Mask:
    """Pixels that differ from their neighbour to the right, below or diagonally below."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here, right, below = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1]
    return (here != right) | (here != below) | (here != padded[1:, 1:])
