"""CKA: are the same pairs of images similar in both? Unbiased, biased, and over batches."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from visrep.analysis.similarity.base import Similarity
from visrep.analysis.spectra import checked

BATCH = 256
"""images of a batch of `CKA_MINIBATCH` at most"""


def hsic(k: Float[Tensor, "n n"], m: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """Unbiased HSIC of two kernel matrices (Song et al. 2012, equation 5): 0 on average for independent ones.

    Raises ValueError for fewer than 4 images.
    """
    n = len(k)
    if n < 4:
        raise ValueError(f"an unbiased HSIC needs 4 or more images, got {n}.")
    return (u_centred(k) * u_centred(m)).sum() / (n * (n - 3))


def u_centred(k: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The kernel matrix with a zero diagonal and zero sums of rows (U-centring).

    The inner product of two of these over n (n - 3) is the unbiased HSIC.
    """
    n = len(k)
    k = k - torch.diag(k.diagonal())
    rows = k.sum(0) / (n - 2)
    centred = k - rows[:, None] - rows[None] + k.sum() / ((n - 1) * (n - 2))
    return centred - torch.diag(centred.diagonal())


def unbiased_gram(z: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """U-centred Gram matrix of length 1, of which an inner product is the unbiased linear CKA.

    Features are centred first, which changes nothing but the rounding. Raises ValueError when the matrix has no
    length, as when all images have one vector.
    """
    z = checked(z)
    z = z - z.mean(0)
    return _unit(u_centred(z @ z.T))


def biased_gram(z: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """Gram matrix of centred features, of length 1: an inner product is the usual (biased) linear CKA."""
    z = checked(z)
    z = z - z.mean(0)
    return _unit(z @ z.T)


def inner(a: Float[Tensor, "n n"], b: Float[Tensor, "n n"]) -> float:
    """Sum of products."""
    return float((a * b).sum())


def minibatch_cka(batches: Iterable[tuple[Float[Tensor, "b d1"], Float[Tensor, "b d2"]]]) -> float:
    """CKA over batches of features of the same images (arXiv:2010.15327): unbiased HSICs averaged, then their ratio.

    For more images than an n x n table allows. Equal to `CKA` for one batch of all; for several an average over pairs
    within batches. The mean of the CKAs of batches is something else. Batches of at least 4 images each count alike.
    Raises ValueError without batches or when one of the two never varies.
    """
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    for x, y in batches:
        x, y = checked(x), checked(y)
        x, y = x - x.mean(0), y - y.mean(0)
        k, m = x @ x.T, y @ y.T
        sums += torch.stack([hsic(k, m), hsic(k, k), hsic(m, m)]).cpu()
        count += 1
    if not count:
        raise ValueError("there are no batches to compare.")
    if not bool((sums[1:] > 0).all()):
        raise ValueError("one of the two gives every image the same vector: there is no CKA.")
    return float(sums[0] / (sums[1] * sums[2]).sqrt())


def in_batches(z: Float[Tensor, "n d"]) -> list[Float[Tensor, "_ d"]]:
    """Parts of up to `BATCH` images, of almost equal size: each takes every so many-th image.

    So that data in the order of its classes gives batches of all of them.
    """
    step = math.ceil(len(z) / BATCH)
    return [z[first::step] for first in range(step)]


def varying(z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The features in float64, which batches are taken of. Raises ValueError when no batch varies."""
    z = checked(z)
    if not any(bool((part != part[0]).any()) for part in in_batches(z)):
        raise ValueError("all images have one vector: there is nothing to compare.")
    return z


def over_batches(x: Float[Tensor, "n d1"], y: Float[Tensor, "n d2"]) -> float:
    """`minibatch_cka` of features of the same images."""
    return minibatch_cka(zip(in_batches(x), in_batches(y), strict=True))


def _unit(k: Tensor) -> Tensor:
    length = k.norm()
    if not length > 0:
        raise ValueError("all images have one vector: there is nothing to compare.")
    return k / length


CKA = Similarity(
    name="cka",
    title="CKA",
    variant="linear kernel, unbiased HSIC (Song et al. 2012), may be slightly negative",
    compares="Blind to rotation, one scale and shifts; ruled by the few strongest directions, so two encoders can "
    "differ in all that is weak and score high; compare values on the same images only.",
    prepare=unbiased_gram,
    compare=inner,
    relational=True,
)
CKA_BIASED = Similarity(
    name="cka-biased",
    title="CKA, biased",
    variant="linear kernel, biased HSIC: the most common form",
    compares="As CKA, but near 1 for any two representations of far more dimensions than images: only for comparing "
    "with published values.",
    prepare=biased_gram,
    compare=inner,
    relational=True,
    over_width=True,
)
CKA_MINIBATCH = Similarity(
    name="cka-minibatch",
    title="minibatch CKA",
    variant="linear kernel, unbiased HSICs averaged over batches of up to 256 images, then their ratio (Nguyen et al. "
    "2021); one batch up to 256 images",
    compares="As CKA, for more images than an N x N table allows: pairs of images of different batches are not looked "
    "at, so the value scatters a little more.",
    prepare=varying,
    compare=over_batches,
    relational=False,
)
