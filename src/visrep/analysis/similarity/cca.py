"""Canonical correlations: which directions of one are linear functions of the other? Mean CCA, SVCCA, PWCCA."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from visrep.analysis.similarity.base import Similarity
from visrep.analysis.spectra import checked

KEPT = 0.99
"""share of the variance that SVCCA keeps"""
EMPTY = 1e-10
"""singular value, as a share of the largest, at which a direction counts as empty"""


def basis(z: Float[Tensor, "n d"]) -> Float[Tensor, "n r"]:
    """Orthonormal columns that span the centred features. Raises ValueError when there is no direction."""
    return _directions(z)[0]


def strongest(z: Float[Tensor, "n d"], kept: float = KEPT) -> Float[Tensor, "n r"]:
    """The leading principal axes that together hold ``kept`` of the variance, as orthonormal columns."""
    u, s = _directions(z)
    shares = s.square().cumsum(0) / s.square().sum()
    return u[:, : int((shares < kept).sum()) + 1]


def basis_and_columns(z: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
    """`basis`, filled up with zeros to d columns, beside the centred features: what PWCCA needs."""
    own = basis(z)
    empty = own.new_zeros(len(z), z.shape[1] - own.shape[1])
    z = checked(z)
    return torch.cat([own, empty, z - z.mean(0)], dim=1)


def mean_correlation(x: Float[Tensor, "n r1"], y: Float[Tensor, "n r2"]) -> float:
    """Mean canonical correlation of two orthonormal bases, over the narrower one's directions: 0 to 1."""
    return float(torch.linalg.svdvals(x.T @ y).clamp(max=1).mean())


def projection_weighted(x: Float[Tensor, "n e1"], y: Float[Tensor, "n e2"]) -> float:
    """PWCCA (arXiv:1806.05759) of two `basis_and_columns`: canonical correlations weighted by how much they carry.

    The weight of a canonical direction h of x is the sum over the columns of x of |h' column|. The published measure
    takes one of the two as x and is not symmetric; this is the mean of both ways.
    """
    return (_one_way(x, y) + _one_way(y, x)) / 2


def _one_way(x: Tensor, y: Tensor) -> float:
    own, columns = x.chunk(2, dim=1)
    own, other = _filled(own), _filled(y.chunk(2, dim=1)[0])
    u, correlations, _ = torch.linalg.svd(own.T @ other, full_matrices=False)
    weights = ((own @ u).T @ columns).abs().sum(1)
    return float((weights * correlations.clamp(max=1)).sum() / weights.sum())


def _filled(columns: Tensor) -> Tensor:
    return columns[:, columns.norm(dim=0) > 0]


def _directions(z: Tensor) -> tuple[Tensor, Tensor]:
    z = checked(z)
    u, s, _ = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    filled = s > EMPTY * s[0]
    if not bool(filled.any()):
        raise ValueError("all images have one vector: there is no direction to correlate.")
    return u[:, filled], s[filled]


CCA = Similarity(
    name="cca",
    title="mean CCA",
    variant="mean canonical correlation over all directions of the narrower, features centred",
    compares="Blind to any invertible linear map of either side, hence also to how strong a direction is: noise counts "
    "as much as signal, and chance is high unless images are many times the dimensions.",
    prepare=basis,
    compare=mean_correlation,
    relational=False,
    over_width=True,
)
SVCCA = Similarity(
    name="svcca",
    title="SVCCA",
    variant="mean canonical correlation of the principal axes that hold 99 % of the variance of each side",
    compares="As mean CCA, without the weakest directions; the number of axes that are kept differs between the two "
    "and moves the value.",
    prepare=strongest,
    compare=mean_correlation,
    relational=False,
    over_width=True,
)
PWCCA = Similarity(
    name="pwcca",
    title="PWCCA",
    variant="canonical correlations weighted by their projections on the features, mean of both ways",
    compares="As mean CCA, but strong directions count more, which lowers the influence of noise; the weights hang "
    "on the scale of the features.",
    prepare=basis_and_columns,
    compare=projection_weighted,
    relational=False,
    over_width=True,
)
