"""Mutual nearest neighbours: do images have the same neighbours in both? The measure of the Platonic hypothesis."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from visrep.analysis.similarity.base import Similarity
from visrep.analysis.spectra import checked

NEIGHBOURS = 10
CLAMPED = 0.95
"""quantile of the absolute values of an image's features; beyond its mean over images values are cut"""


def neighbour_table(z: Float[Tensor, "n d"], k: int = NEIGHBOURS) -> Float[Tensor, "n n"]:
    """1 / root(n k) where the column's image is among the k nearest of the row's, else 0.

    An inner product of two of these is the mean share of neighbours that both have (arXiv:2405.07987). Values are
    cut at the mean over images of the `CLAMPED` quantile of their absolute values, as in the official code; then by
    cosine. Raises ValueError unless there are more than k + 1 images.
    """
    z = checked(z)
    n = len(z)
    if n <= k + 1:
        raise ValueError(
            f"{n} images have {n - 1} neighbours each: for {k} of them to mean anything use more."
        )
    limit = float(z.abs().quantile(CLAMPED, dim=1).mean())
    z = F.normalize(z.clamp(-limit, limit), dim=-1)
    cosines = z @ z.T
    cosines.fill_diagonal_(-torch.inf)
    table = torch.zeros_like(cosines)
    return table.scatter(1, cosines.topk(k, dim=1).indices, 1 / (n * k) ** 0.5)


def shared(a: Float[Tensor, "n n"], b: Float[Tensor, "n n"]) -> float:
    """Mean share of neighbours in common; by chance k / (n - 1)."""
    return float((a * b).sum())


MUTUAL_KNN = Similarity(
    name="mutual-knn",
    title="mutual kNN",
    variant="k = 10, cosine, values cut at the 0.95 quantile (Platonic representation hypothesis)",
    compares="About the nearest neighbours only and blind to how far they are; chance is k / (n - 1), so values "
    "compare at one number of images only, and near duplicates raise it.",
    prepare=neighbour_table,
    compare=shared,
    relational=True,
    least=NEIGHBOURS + 2,
)
