"""Label-free measures of a representation: how many directions it uses, how evenly, how far apart things lie.

Every function takes features "n d", one row an image, computes in float64 and returns a plain number. None of
them says that a representation is good: `rankme` was proposed to choose between runs of *one* method and does
not rank methods, and all of them depend on n. Compare numbers only at equal n, d, data and layer.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def spectrum(z: Float[Tensor, "n d"]) -> Float[Tensor, " r"]:
    """Variance along each principal axis, largest first: the min(n, d) leading eigenvalues of the covariance.

    The sum is the total variance. Its shape can be compared between encoders after division by the sum or the
    first value; its scale cannot. Raises ValueError for fewer than two rows or values that are not finite.
    """
    z = checked(z)
    return torch.linalg.svdvals(z - z.mean(0)).square() / (len(z) - 1)


def rankme(z: Float[Tensor, "n d"], eps: float = 1e-7) -> float:
    """RankMe (arXiv:2210.02885, eq. 1): exp of the entropy of the singular values, 1 to min(n, d).

    As in the paper z is not centred, and eps is added after normalising: a constant offset of all features
    lowers the value, which is how a collapse to one point shows. It grows with n until n is well above d
    (see `sample_caution`), so it compares runs of one method on the same images, not methods or widths.
    Raises ValueError for fewer than two rows or values that are not finite.
    """
    s = torch.linalg.svdvals(checked(z))
    p = s / s.sum().clamp_min(torch.finfo(s.dtype).tiny) + eps
    return float((-p * p.log()).sum().exp())


def participation_ratio(z: Float[Tensor, "n d"]) -> float:
    """(sum of variances)² / (sum of squared variances) along the principal axes: 1 to min(n, d).

    Ruled by the largest variances, hence far below `rankme` on the same features (23 against 207 on a 1/i
    spectrum of 256): never show one under the other's name. 0 when all rows are equal.
    Raises ValueError for fewer than two rows or values that are not finite.
    """
    variance = spectrum(z)
    return float(
        variance.sum().square() / variance.square().sum().clamp_min(torch.finfo(variance.dtype).tiny)
    )


def nesum(z: Float[Tensor, "n d"]) -> float:
    """Sum of the variances along the principal axes over the largest of them (the stable rank): 1 to min(n, d).

    6 where `participation_ratio` is 23 and `rankme` 207. 0 when all rows are equal.
    Raises ValueError for fewer than two rows or values that are not finite.
    """
    variance = spectrum(z)
    return float(variance.sum() / variance[0].clamp_min(torch.finfo(variance.dtype).tiny))


def feature_std(z: Float[Tensor, "n d"]) -> float:
    """Standard deviation over images of the L2-normalised features, averaged over dimensions.

    1/sqrt(d) for directions spread evenly over the sphere, 0 when all images have one direction (complete
    collapse); blind to collapse onto several directions. Multiply by sqrt(d) to compare widths.
    Raises ValueError for fewer than two rows or values that are not finite.
    """
    return float(F.normalize(checked(z), dim=-1).std(0).mean())


def alignment(z1: Float[Tensor, "n d"], z2: Float[Tensor, "n d"]) -> float:
    """Mean squared distance between unit vectors of two views of the same images (arXiv:2005.10242): 0 to 4.

    Lower is better only together with `uniformity`: a constant encoder has 0. Depends on the augmentation.
    Raises ValueError when the shapes differ, for fewer than two rows or values that are not finite.
    """
    if z1.shape != z2.shape:
        raise ValueError(
            f"alignment compares two views of the same images, got {_shape(z1)} and {_shape(z2)}."
        )
    difference = F.normalize(checked(z1), dim=-1) - F.normalize(checked(z2), dim=-1)
    return float(difference.square().sum(-1).mean())


def uniformity(z: Float[Tensor, "n d"], t: float = 2.0, chunk: int = 2048) -> float:
    """log mean exp(-t |x - y|²) over all pairs of different rows, on the unit sphere (arXiv:2005.10242).

    0 for a constant encoder; -2t (-4) at best for many dimensions. An estimate over pairs, so it hardly
    depends on n. Raises ValueError for fewer than two rows or values that are not finite.
    """
    z = F.normalize(checked(z), dim=-1)
    n = len(z)
    # sum over chunks of rows: the whole n x n table of 20,000 images would take 3 GB
    total = sum(float((2 * t * (rows @ z.T - 1)).exp().sum()) for rows in z.split(chunk))
    themselves = float((2 * t * (z.square().sum(-1) - 1)).exp().sum())
    return math.log((total - themselves) / (n * (n - 1)))


def sample_caution(n: int, d: int) -> str:
    """What to keep in mind when n images measure a rank in d dimensions; empty when n is ample.

    The same features score RankMe 54, 167, 201 and 207 at n = 64, 256, 1024 and 5000 with d = 256.
    """
    if n <= d:
        return (
            f"{n} images span at most {n} of {d} dimensions: RankMe and participation ratio are capped by "
            f"the number of images. Use more than {d} images, better {4 * d}."
        )
    if n < 4 * d:
        return f"{n} images for {d} dimensions: RankMe still grows with their number. Use {4 * d} or more."
    return ""


def checked(z: Tensor) -> Tensor:
    """The features in float64. Raises ValueError for fewer than two rows or values that are not finite."""
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"expected features of at least 2 images, one row an image, got {_shape(z)}.")
    z = z.detach().double()
    if not z.isfinite().all():
        bad = int((~z.isfinite()).any(1).sum())
        raise ValueError(
            f"{bad} of {len(z)} rows hold NaN or infinity: the encoder diverged, there is no spectrum."
        )
    return z


def _shape(z: Tensor) -> str:
    return " x ".join(map(str, z.shape)) or "a scalar"
