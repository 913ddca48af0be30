"""Bootstrap intervals of means whose parts belong together: frames of a video, points of a pair of images."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Shaped

RESAMPLES = 1000


def interval(
    values: Shaped[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"], *, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of all values, over resamples of whole groups.

    With one value a group this is the usual bootstrap over values; with a single group it has no width.
    """
    _, group = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(group, weights=values), np.bincount(group)
    low, high = np.quantile(resampled(sums, counts, seed), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled(
    sums: Shaped[np.ndarray, " g"], counts: Shaped[np.ndarray, " g"], seed: int
) -> Float64[np.ndarray, " r"]:
    """The mean of all values in each of some resamples of groups."""
    g = len(sums)
    times = np.random.default_rng(seed).multinomial(g, np.full(g, 1 / g), size=RESAMPLES)
    return (times @ sums) / (times @ counts)
