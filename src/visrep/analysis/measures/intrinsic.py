"""TwoNN: how many numbers would describe the features locally, from the distances to two neighbours."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from visrep.analysis.measures.base import Measure
from visrep.analysis.spectra import checked

DISCARDED = 0.1
"""share of the largest ratios left out of the fit"""
CHUNK = 1024


def two_nn(z: Float[Tensor, "n d"], discarded: float = DISCARDED) -> float:
    """Intrinsic dimension (TwoNN, arXiv:1803.06992): slope of -log(1 - F(mu)) against log mu through the origin.

    mu is the ratio of the distances to the second and the first nearest neighbour, F its empirical distribution;
    the largest ``discarded`` of the ratios are left out. Rows equal to another row are left out as well.
    It is local, so noise of the size of the gaps between neighbours counts; above about 20 it is too low unless
    images are very many.
    Raises ValueError with fewer than 10 different rows or values that are not finite.
    """
    z = checked(z).unique(dim=0)
    n = len(z)
    if n < 10:
        raise ValueError(f"only {n} different vectors: there are no neighbours to measure by.")
    nearest = torch.cat([_two_nearest(z, start) for start in range(0, n, CHUNK)])
    kept = nearest[:, 0] > 0
    mu = (nearest[kept, 1] / nearest[kept, 0]).sort().values
    used = int((1 - discarded) * len(mu))
    x = mu[:used].log()
    y = -torch.log1p(-torch.arange(1, used + 1, dtype=mu.dtype, device=mu.device) / len(mu))
    if not x.square().sum() > 0:
        raise ValueError("every first and second neighbour are equally far: there is no local dimension.")
    return float((x * y).sum() / x.square().sum())


def _two_nearest(z: Tensor, start: int) -> Tensor:
    """Distances "chunk 2" of some rows to their two nearest other rows."""
    rows = z[start : start + CHUNK]
    # exact differences: by inner products, near neighbours far from the origin would lose all their digits
    distances = torch.cdist(rows, z, compute_mode="donot_use_mm_for_euclid_dist")
    own = torch.arange(len(rows), device=z.device)
    distances[own, own + start] = torch.inf
    return distances.topk(2, largest=False).values


INTRINSIC_DIMENSION = Measure(
    name="intrinsic-dimension",
    title="intrinsic dimension",
    variant="TwoNN: fit through the origin, largest 10 % of the ratios left out, equal rows left out",
    compares="Compares layers and encoders of any width on the same images; it is about the nearest neighbours only, "
    "too low for high dimensions, and neither much nor little of it is good by itself.",
    better="",
    of=two_nn,
    least=100,
)
