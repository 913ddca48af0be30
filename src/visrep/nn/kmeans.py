"""Groups of vectors that point in similar directions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

ROWS = 4096
"""vectors compared with all centroids at once: all of a large data set would not fit in memory"""


@torch.no_grad()
def spherical_kmeans(
    x: Float[Tensor, "n d"], centroids: Float[Tensor, "k d"], iterations: int = 10
) -> tuple[Float[Tensor, "k d"], Int[Tensor, " n"]]:
    """k-means by cosine from the given centroids; returns the centroids, of length 1, and each vector's nearest one.

    x: vectors of length 1. A centroid without vectors stays where it is. Sums are products of matrices, not scattered
    additions, so that equal inputs give equal results on a GPU too. As in the official code of DeepCluster v2
    (Caron et al. 2020, arXiv:2006.09882), also in that the given centroids are used as they are.
    """
    number = torch.arange(len(centroids), device=x.device)
    for _ in range(iterations):
        sums, sizes = torch.zeros_like(centroids), centroids.new_zeros(len(centroids))
        for rows in x.split(ROWS):
            member = (nearest(rows, centroids)[:, None] == number).to(x.dtype)  # n k
            sums += member.T @ rows
            sizes += member.sum(0)
        centroids = F.normalize(torch.where(sizes[:, None] > 0, sums, centroids), dim=1)
    return centroids, torch.cat([nearest(rows, centroids) for rows in x.split(ROWS)])


def nearest(x: Float[Tensor, "n d"], centroids: Float[Tensor, "k d"]) -> Int[Tensor, " n"]:
    """The centroid of greatest dot product."""
    return (x @ centroids.T).argmax(1)
