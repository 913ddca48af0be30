"""Cluster learnability, and CLID, its product with the intrinsic dimension."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from visrep.analysis.measures.base import Measure
from visrep.analysis.measures.intrinsic import two_nn
from visrep.analysis.spectra import checked


def cluster_learnability(z: Float[Tensor, "n d"], clusters: int = 0, seed: int = 0) -> float:
    """How soon nearest neighbours predict k-means clusters, 0 to 1 (after arXiv:2206.01251).

    K-means (``clusters`` of them, 0 for the root of n; best of 3 starts) labels the rows of length 1. Then the rows
    come one after another in random order, each is given the cluster of the nearest row before it, and the share
    of right ones is returned. The first row cannot be right.
    Raises ValueError with fewer different rows than clusters or values that are not finite.
    """
    from sklearn.cluster import KMeans  # slow to import, and training imports this file

    z = F.normalize(checked(z), dim=-1).cpu()
    k = clusters or math.isqrt(len(z))
    different = len(z.unique(dim=0))
    if different < k or k < 2:
        raise ValueError(f"{different} different directions cannot make {max(k, 2)} clusters.")
    starts: Any = 3  # its annotation is that of its default, "auto"
    labels = KMeans(k, n_init=starts, random_state=seed).fit_predict(z.numpy())
    order = np.random.default_rng(seed).permutation(len(z))
    z, labels = z[order], torch.from_numpy(labels[order])
    earlier = (z @ z.T).tril(-1) + torch.triu(torch.full((len(z), len(z)), -torch.inf, dtype=z.dtype))
    predicted = labels[earlier[1:].argmax(1)]
    return float((predicted == labels[1:]).double().sum() / len(z))


def clid(z: Float[Tensor, "n d"], seed: int = 0) -> float:
    """CLID (arXiv:2206.01251): `cluster_learnability` times `two_nn`, both of rows as they are defined there.

    The product is the pinned choice: it needs no other encoders to be put on one scale with, so a value does not
    change with what it is compared to.
    Raises ValueError where one of the two does.
    """
    return cluster_learnability(z, seed=seed) * two_nn(z)


CLUSTER_LEARNABILITY = Measure(
    name="cluster-learnability",
    title="cluster learnability",
    variant="k-means with root-of-n clusters on rows of length 1, seed 0; share right by the nearest earlier row",
    compares="Compares encoders of any width on the same images and number of clusters; a collapse to few points is "
    "learnable too, so read it beside the intrinsic dimension.",
    better="higher",
    of=cluster_learnability,
    least=100,
)
CLID = Measure(
    name="clid",
    title="CLID",
    variant="product of cluster learnability and TwoNN dimension, as they are defined here",
    compares="Was proposed to compare encoders of different methods and widths on the same images; it hangs on the "
    "number of images and clusters, and on ten images a class says little.",
    better="higher",
    of=clid,
    least=100,
)
