"""A label-free measure as a value: its name, its exact variant, what it can compare, and when it stays silent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Needs = Literal["vectors", "views", "pair", "tokens", "codes"]
Better = Literal["higher", "lower", "near 1", ""]


@dataclass(frozen=True)
class Sample:
    """What one layer of an encoder makes of some images. What was not extracted is None."""

    vectors: Float[Tensor, "n d"]
    """one an image, as it is"""
    views: Float[Tensor, "m q d"] | None = None
    """q random views of each of m images: a row of views belongs to one image"""
    tokens: Float[Tensor, "t p width"] | None = None
    """patch tokens of t images"""
    codes: Float[Tensor, "c k"] | None = None
    """probabilities over k prototypes, of a method that has them"""


@dataclass(frozen=True)
class Reading:
    """One number and what to keep in mind about it."""

    value: float | None
    """None where the sample is too small or the measure means nothing: ``caution`` says why"""
    images: int
    caution: str = ""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A label-free measure. The same value is used while training and afterwards."""

    name: str
    """as it is written on the command line"""
    title: str
    variant: str
    """which of the published variants it is, with every constant"""
    compares: str
    """one sentence: what two values of it can tell and what they cannot"""
    better: Better
    """which way is better between runs of one method; empty when neither is: it then cannot select"""
    of: Callable[..., float]
    needs: Needs = "vectors"
    over_width: bool = False
    """whether it needs more images than the features have dimensions (N > D)"""
    least: int = 2
    """images below which it is silent"""

    @property
    def key(self) -> str:
        """Its name in metrics.jsonl and diagnostics.json."""
        return self.name.replace("-", "_")

    def possible(self, sample: Sample) -> bool:
        """Whether the sample holds what it needs."""
        return _material(sample, self.needs) is not None

    def __call__(self, sample: Sample) -> float:
        """The plain number, whatever the size of the sample; `read` is careful.

        Raises ValueError when the sample lacks what it needs, or for features that the measure cannot take.
        """
        material = _material(sample, self.needs)
        if material is None:
            raise ValueError(f"{self.title} needs {self.needs} of the sample, and there are none.")
        if self.needs == "pair":
            return self.of(material[:, 0], material[:, 1])
        return self.of(material)

    def read(self, sample: Sample) -> Reading:
        """The number with its caution; without a number where that would mislead."""
        material = _material(sample, self.needs)
        if material is None:
            needed = "pairs of views" if self.needs == "pair" else self.needs
            return Reading(None, 0, f"not measured: there are no {needed}.")
        n, d = len(material), material.shape[-1]
        if n < self.least:
            return Reading(None, n, f"not shown: {n} images are too few, use {self.least} or more.")
        if self.over_width and n <= d:
            said = f"not shown: {n} images span at most {n} of {d} dimensions. Use more than {d}, better {4 * d}."
            return Reading(None, n, said)
        try:
            value = self(sample)
        except ValueError as problem:
            return Reading(None, n, f"not shown: {problem}")
        if not math.isfinite(value):
            return Reading(None, n, "not shown: the value is not finite.")
        few = self.over_width and n < 4 * d
        said = f"{n} images for {d} dimensions: still depends on their number, use {4 * d} or more."
        return Reading(value, n, said if few else "")

    def best_first(self, value: float) -> float:
        """A key to sort by: the best value is the smallest. Raises ValueError where neither way is better."""
        if self.better == "higher":
            return -value
        if self.better == "lower":
            return value
        if self.better == "near 1":
            return abs(value - 1)
        raise ValueError(f"{self.title} has no better end, so it cannot select.")


def _material(sample: Sample, needs: Needs) -> Tensor | None:
    return {
        "vectors": sample.vectors,
        "views": sample.views,
        "pair": sample.views,
        "tokens": sample.tokens,
        "codes": sample.codes,
    }[needs]
