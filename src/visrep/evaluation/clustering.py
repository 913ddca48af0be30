"""Clustering: k-means on the test images' features with as many clusters as classes, and how well the two agree.

Features are scaled to length one; scikit-learn's k-means, the best of ten starts. Reported: accuracy under the best
one-to-one matching of clusters with classes (Hungarian), normalised mutual information (divided by the mean of the two
entropies, which is the V-measure), and the adjusted Rand index, each the mean of five runs. No label is used but to
score. The interval covers the starts and the choice of images: half width sqrt(t² s² / 5 + z² v), with s² the variance
over runs, t Student's quantile, and v the variance of the first run's score over resamples of its images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from scipy.special import ndtri, stdtrit
from torch import Tensor

from visrep.evaluation.results import Inapplicable, Measure, Setting

RUNS = 5
STARTS = 10
RESAMPLES = 200


def clustering(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    answers: Int64[Tensor, " m"],
    *,
    seed: int = 0,
) -> list[Measure]:
    """Accuracy, NMI and ARI; ``seed`` draws starts and resamples.

    Raises Inapplicable for test images of a single class, or no more of them than classes.
    """
    classes, truth = answers.unique(return_inverse=True)
    k, m = len(classes), len(answers)
    if k < 2 or m <= k:
        raise Inapplicable(
            f"clustering needs at least 2 classes and more images than classes among the test images; there are {m} "
            f"images of {k}. Give more test images, or leave clustering out."
        )
    x = F.normalize(test, dim=-1).cpu().numpy()
    tables = [counts(k_means(x, k, seed + run), truth.cpu().numpy(), k) for run in range(RUNS)]
    rng = np.random.default_rng(seed)
    resampled = rng.multinomial(m, tables[0].ravel() / m, RESAMPLES).reshape(-1, k, k)
    measures = []
    for metric, agreement in AGREEMENTS.items():
        runs = np.array([agreement(table) for table in tables])
        over_images = np.var([agreement(table) for table in resampled], ddof=1)
        t, z = stdtrit(RUNS - 1, 0.975), ndtri(0.975)
        half = float(np.sqrt(t**2 * runs.var(ddof=1) / RUNS + z**2 * over_images))
        value = float(runs.mean())
        settings: dict[str, Setting] = {"clusters": k, "runs": RUNS, "starts": STARTS}
        ends = max(value - half, -1.0), min(value + half, 1.0)
        measures.append(Measure("clustering", metric, value, *ends, settings, n_test=m))
    return measures


def k_means(x: Float[np.ndarray, "m d"], k: int, seed: int) -> Int64[np.ndarray, " m"]:
    """A cluster for each image."""
    from sklearn.cluster import KMeans

    with warnings.catch_warnings():
        # fewer different vectors than clusters: a collapsed encoder, which the score shows
        warnings.filterwarnings("ignore", message="Number of distinct clusters")
        starts: Any = STARTS  # scikit-learn's types know only "auto"
        return KMeans(k, n_init=starts, random_state=seed).fit_predict(x).astype(np.int64)


def counts(
    clusters: Int64[np.ndarray, " m"], truth: Int64[np.ndarray, " m"], k: int
) -> Int64[np.ndarray, "k k"]:
    """Images of each cluster (row) and class (column)."""
    table = np.zeros((k, k), np.int64)
    np.add.at(table, (clusters, truth), 1)
    return table


def accuracy(table: Int64[np.ndarray, "k c"]) -> float:
    """Share of images in the class that their cluster is matched with."""
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / table.sum())


def nmi(table: Int64[np.ndarray, "k c"]) -> float:
    """Mutual information over the mean of the two entropies; 1 when both are zero."""
    joint = table / table.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    there = joint > 0
    mutual = float((joint[there] * np.log(joint[there] / np.outer(rows, columns)[there])).sum())
    entropy = (_entropy(rows) + _entropy(columns)) / 2
    return mutual / entropy if entropy > 0 else 1.0


def ari(table: Int64[np.ndarray, "k c"]) -> float:
    """Share of pairs on which the two agree, adjusted so that chance is 0."""

    def pairs(n: np.ndarray) -> float:
        return float((n * (n - 1.0) / 2).sum())

    together, rows, columns, every = (
        pairs(n) for n in (table, table.sum(1), table.sum(0), np.asarray(table.sum()))
    )
    chance, most = rows * columns / every, (rows + columns) / 2
    return (together - chance) / (most - chance) if most != chance else 1.0


AGREEMENTS: dict[str, Callable[[np.ndarray], float]] = {"accuracy": accuracy, "NMI": nmi, "ARI": ari}


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())
