"""RSA: do both put the pairs of images into the same order of dissimilarity?"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from visrep.analysis.similarity.base import Similarity
from visrep.analysis.similarity.cka import inner
from visrep.analysis.spectra import checked


def ranked_dissimilarities(z: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """Ranks of 1 - Pearson correlation between all pairs of images, centred, of length 1, zero on the diagonal.

    An inner product of two of these is Spearman's correlation of the two sets of dissimilarities; equal ones share
    their mean rank. Raises ValueError where the features of an image do not vary, or all pairs are equally alike.
    """
    z = checked(z)
    z = z - z.mean(1, keepdim=True)
    length = z.norm(dim=1, keepdim=True)
    if not bool((length > 0).all()):
        raise ValueError("the features of some image are all one number, which correlates with nothing.")
    z = z / length
    n = len(z)
    rows, columns = torch.triu_indices(n, n, 1, device=z.device)
    ranks = mean_ranks(1 - (z @ z.T)[rows, columns])
    ranks = ranks - ranks.mean()
    if not ranks.norm() > 0:
        raise ValueError("all pairs of images are equally alike: there is no order to compare.")
    table = torch.zeros(n, n, dtype=z.dtype, device=z.device)
    table[rows, columns] = ranks / ranks.norm() / 2**0.5  # each pair stands there twice
    return table + table.T


def mean_ranks(values: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """Ranks from 1 on; equal values share the mean of theirs."""
    _, where, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[where]


RSA = Similarity(
    name="rsa",
    title="RSA",
    variant="Spearman correlation of 1 - Pearson dissimilarities over all pairs of images",
    compares="Blind to any change of an image's features that keeps their correlations, and to any rising function of "
    "the dissimilarities; not to rotation, unless features have mean 0 in each image.",
    prepare=ranked_dissimilarities,
    compare=inner,
    relational=True,
)
