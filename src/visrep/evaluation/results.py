"""What protocols return and what is reported: predictions, and scores with confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Int64
from torch import Tensor

Judged = Literal["trained", "untrained", "pixels"]
Setting = str | int | float | bool


@dataclass(frozen=True)
class Prediction:
    """A protocol's answers for the test images. It never sees test labels, so nothing is tuned on them."""

    protocol: str
    predicted: Tensor
    """int64 "m": a label for each test image"""
    settings: dict[str, Setting]
    """what was chosen or fixed: k, C, learning rate, ..."""
    caution: str = ""
    """what a reader should know about this number, if anything"""


@dataclass(frozen=True)
class Result:
    """One number of an evaluation. ``value`` and its 95 % interval are in percent."""

    protocol: str
    encoder: Judged
    layer: int
    """1 is the first; the last is the encoder's depth; 0 for pixels"""
    pooling: str
    """cls, mean or cls+mean; tokens when the protocol pools by itself; none for pixels"""
    metric: str
    value: float
    ci_low: float
    ci_high: float
    n_train: int
    n_test: int
    settings: dict[str, Setting] = field(default_factory=dict)


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
    """Top-1 accuracy of a prediction with its bootstrap interval."""
    correct = (prediction.predicted.cpu() == labels.cpu()).numpy()
    low, high = bootstrap(correct, seed=seed)
    return Result(
        protocol=prediction.protocol,
        encoder=encoder,
        layer=layer,
        pooling=pooling,
        metric="top-1",
        value=100 * float(correct.mean()),
        ci_low=100 * low,
        ci_high=100 * high,
        n_train=n_train,
        n_test=len(labels),
        settings=prediction.settings,
    )


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
