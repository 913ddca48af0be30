"""Intervals of numbers whose parts belong together: frames of a video, points of a pair of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Shaped
from scipy.special import stdtrit

RESAMPLES = 1000
FEW = 10
"""videos below which an interval says little about others"""


def interval(
    values: Shaped[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"], *, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of all values, over resamples of whole groups.

    With one value a group this is the usual bootstrap over values. A single group tells nothing of others, so that its
    interval is all that a share can be, from 0 to 1 (or to the mean, for an error beyond 1).
    """
    _, group = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(group, weights=values), np.bincount(group)
    mean = float(np.mean(values))
    if len(sums) < 2:
        return 0.0, max(1.0, mean)
    low, high = np.quantile(resampled(sums, counts, seed), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def jackknife(
    without: Float64[np.ndarray, " g"], value: float, *, level: float = 0.95
) -> tuple[float, float]:
    """Interval of a share that is no mean over groups, from what it is ``without`` each of the g groups.

    t standard errors to either side, sqrt((g - 1) / g * sum of squares around the mean of ``without``), with the
    quantile t of Student's distribution with g - 1 degrees of freedom; beyond that on the side to which the share is
    biased, by the bias (g - 1) (mean of ``without`` - ``value``) (Quenouille; Tukey). From 0 to 1 for one group.
    """
    g = len(without)
    if g < 2:
        return 0.0, 1.0
    error = np.sqrt((g - 1) / g * np.square(without - without.mean()).sum())
    unbiased = value - (g - 1) * (without.mean() - value)
    half = stdtrit(g - 1, (1 + level) / 2) * error
    return max(0.0, float(min(value, unbiased) - half)), min(1.0, float(max(value, unbiased) + half))


def few_videos(names: Sequence[str], videos: int) -> str:
    """A caution about protocols that judged so many videos; "" from 10 on."""
    if videos >= FEW:
        return ""
    if videos == 1:
        said = "frames of 1 video only, so no interval can be given: it is shown as from 0 to 100"
    else:
        said = f"frames of {videos} videos only, so intervals say little about others"
    return f"{', '.join(names)}: judged on {said}. Give more videos, or test videos beside them (--test)."


def resampled(
    sums: Shaped[np.ndarray, " g"], counts: Shaped[np.ndarray, " g"], seed: int
) -> Float64[np.ndarray, " r"]:
    """The mean of all values in each of some resamples of groups."""
    g = len(sums)
    times = np.random.default_rng(seed).multinomial(g, np.full(g, 1 / g), size=RESAMPLES)
    return (times @ sums) / (times @ counts)
