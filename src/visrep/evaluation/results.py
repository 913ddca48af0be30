"""What protocols return and what is reported: predictions, and scores with confidence intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64
from scipy.special import ndtri, stdtrit
from torch import Tensor

from visrep.evaluation.examples import Example
from visrep.evaluation.versions import version_of

Judged = Literal["trained", "untrained", "pixels"]
Setting = str | int | float | bool
TOP_1 = "top-1"
ERRORS = frozenset({"RMSE", "abs. rel. error"})
"""metrics of which less is better"""
VARIES = {"k": 20, "n": 10}
"""settings in which the results of one protocol differ, with the value that stands for the protocol"""


@dataclass(frozen=True)
class Prediction:
    """A protocol's answers for the test images. It never sees test labels, so nothing is tuned on them."""

    protocol: str
    predicted: Tensor
    """int64 "m": a label for each test image; "r m" of r draws of the training images"""
    settings: dict[str, Setting]
    """what was chosen or fixed: k, C, learning rate, ..."""
    caution: str = ""
    """what a reader should know about this number, if anything"""
    n_train: int = 0
    """training images whose labels were used, of one draw; 0 for all that were given"""
    of_train: bool = False
    """whether these are labels for the training images, each left out in turn, and not for the test images"""


class Inapplicable(ValueError):
    """A protocol cannot be run on such data, or asks for what such an encoder does not have."""


@dataclass(frozen=True)
class Measure:
    """A number that a protocol computes by itself: not a share of right answers, one an image. Shares in [-1, 1]."""

    protocol: str
    metric: str
    value: float
    low: float
    high: float
    """ends of the 95 % interval"""
    settings: dict[str, Setting]
    caution: str = ""
    n_train: int = 0
    """training images used"""
    n_test: int = 0
    details: dict[str, float] = field(default_factory=dict)
    """numbers that this one is made of, such as those of single classes, in percent"""
    examples: list[Example] = field(default_factory=list, compare=False)
    """pictures of what was said of some images; of several numbers of one protocol the first has them"""

    def result(self, encoder: Judged, layer: int, pooling: str) -> Result:
        """In percent."""
        return Result(
            self.protocol, encoder, layer, pooling, self.metric, 100 * self.value, 100 * self.low, 100 * self.high,
            self.n_train, self.n_test, self.settings, self.details, version_of(self.protocol),
        )  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One number of an evaluation. ``value`` and its 95 % interval are in percent."""

    protocol: str
    encoder: Judged
    layer: int
    """1 is the first; the last is the encoder's depth; 0 for pixels"""
    pooling: str
    """cls, mean, cls+mean or last-4; tokens or layers when the protocol pools by itself; none for pixels"""
    metric: str
    """top-1 and others; of several of one protocol the first stands for it"""
    value: float
    ci_low: float
    ci_high: float
    n_train: int
    n_test: int
    settings: dict[str, Setting] = field(default_factory=dict)
    details: dict[str, float] = field(default_factory=dict)
    """numbers that ``value`` is made of, such as those of single classes, in percent"""
    version: int = 1
    """of the protocol's settings; results of different versions are not compared (see `versions`)"""


def goodness(metric: str, value: float) -> float:
    """Greater is better: the value, or its negative where it is an error."""
    return -value if metric in ERRORS else value


def clearly_ahead(metric: str, one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether an interval lies on the better side of another one."""
    worst = min(goodness(metric, end) for end in one)
    return worst > max(goodness(metric, end) for end in other)


def variant(settings: Mapping[str, Any]) -> tuple[str, int] | None:
    """Which of the results of its protocol one with these settings is: ("k", 20); None when there is only one."""
    return next(((name, int(settings[name])) for name in VARIES if name in settings), None)


def from_headline(settings: Mapping[str, Any]) -> int:
    """How far a result with these settings is from the one that stands for its protocol."""
    found = variant(settings)
    return abs(found[1] - VARIES[found[0]]) if found else 0


def heading(results: Iterable[Result]) -> str:
    """Of a table of these results."""
    accuracy = all(result.metric == TOP_1 for result in results)
    return f"{'Top-1 accuracy' if accuracy else 'Top-1 accuracy, or as named,'} in %, with 95 % intervals"


def score(
    prediction: Prediction,
    labels: Int64[Tensor, " m"],
    *,
    encoder: Judged,
    layer: int,
    pooling: str,
    n_train: int,
    seed: int = 0,
) -> Result:
    """Top-1 accuracy of a prediction with its bootstrap interval, or the mean over draws with an interval of both."""
    correct = (prediction.predicted.cpu() == labels.cpu()).numpy()
    settings = prediction.settings
    if correct.ndim == 1:
        low, high = bootstrap(correct, seed=seed)
    else:
        low, high = interval_over_draws(correct)
        settings = {**settings, "sd_over_draws": 100 * float(correct.mean(1).std(ddof=1))}
    return Result(
        protocol=prediction.protocol,
        encoder=encoder,
        layer=layer,
        pooling=pooling,
        metric=TOP_1,
        value=100 * float(correct.mean()),
        ci_low=100 * low,
        ci_high=100 * high,
        n_train=prediction.n_train or n_train,
        n_test=len(labels),
        settings=settings,
        version=version_of(prediction.protocol),
    )


def bootstrap_mean(
    values: np.ndarray, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of one value a test image (or query), over resamples of these."""
    rng = np.random.default_rng(seed)
    m = len(values)
    means = [values[rng.integers(m, size=m)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap(
    correct: np.ndarray, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of an accuracy over resamples of the test images, as shares in [0, 1].

    It covers the choice of test images only, not the choice of seed or of training images. The accuracy of m
    images drawn with replacement is a binomial count over m, so the counts are drawn and no index is.
    Raises ValueError when there is no image.
    """
    if not len(correct):
        raise ValueError(
            "an accuracy over 0 test images does not exist. Give at least one labelled test image."
        )
    rng = np.random.default_rng(seed)
    accuracies = rng.binomial(len(correct), correct.mean(), resamples) / len(correct)
    low, high = np.quantile(accuracies, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def interval_over_draws(correct: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean accuracy over draws of training images, "r m" of r draws, as shares in [0, 1].

    It covers the choice of training images and that of test images, which all draws share: its half width is
    sqrt(t² s² / r + z² v / m), with the variance s² over draws, v that over test images of the share of draws that are
    right, and the quantiles t of Student's distribution with r - 1 degrees of freedom and z of the normal one.
    Raises ValueError when there is a single draw.
    """
    r, m = correct.shape
    if r < 2:
        raise ValueError("an interval over draws needs at least 2 of them, there is 1. Use `bootstrap`.")
    t, z = stdtrit(r - 1, (1 + level) / 2), ndtri((1 + level) / 2)
    over_draws = correct.mean(1).var(ddof=1) / r
    over_images = correct.mean(0).var(ddof=0) / m
    half = float(np.sqrt(t**2 * over_draws + z**2 * over_images))
    mean = float(correct.mean())
    return max(0.0, mean - half), min(1.0, mean + half)
