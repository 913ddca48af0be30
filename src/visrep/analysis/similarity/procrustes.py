"""Procrustes: how well one representation turns into the other by a rotation."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from visrep.analysis.similarity.base import Similarity
from visrep.analysis.spectra import checked


def standardised(z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Centred, with Frobenius norm 1. Raises ValueError when all rows are one vector."""
    z = checked(z)
    z = z - z.mean(0)
    length = z.norm()
    if not length > 0:
        raise ValueError("all images have one vector: there is nothing to turn.")
    return z / length


def rotated_overlap(x: Float[Tensor, "n d1"], y: Float[Tensor, "n d2"]) -> float:
    """Inner product of two standardised representations after the best rotation or reflection: 0 to 1.

    The nuclear norm of x' y; the Procrustes distance is the root of 2 - 2 of it, the angle between shapes its arc
    cosine. The narrower one is thought padded with zeros.
    """
    return float(torch.linalg.matrix_norm(x.T @ y, "nuc"))


PROCRUSTES = Similarity(
    name="procrustes",
    title="Procrustes",
    variant="nuclear norm of the product of centred features of norm 1; 1 - distance² / 2",
    compares="Blind to rotation, reflection, one scale and shifts only, so stricter than CKA and CCA: all directions "
    "count by their strength; high by chance for few images, so read it against the permuted value.",
    prepare=standardised,
    compare=rotated_overlap,
    relational=False,
    over_width=True,
)
