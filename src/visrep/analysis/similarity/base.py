"""A measure of how alike two representations of the same images are, as a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """A similarity: 1 (or nearly) for the same representation, about its chance level for unrelated ones.

    It comes in two parts, so that many layers are compared without doing the work of each anew: ``prepare`` turns
    features into what is compared, ``compare`` two of those into a number.
    """

    name: str
    """as it is written on the command line"""
    title: str
    variant: str
    """which of the published variants it is, with every constant"""
    compares: str
    """one sentence: what it is blind to, and what its number can and cannot say"""
    prepare: Callable[[Tensor], Tensor]
    compare: Callable[[Tensor, Tensor], float]
    relational: bool
    """whether what is compared is a table of images with images (both axes are reordered), not of images"""
    over_width: bool = False
    """whether it needs more images than either representation has dimensions"""
    least: int = 4
    """images below which it is silent"""

    def __call__(self, x: Float[Tensor, "n1 d1"], y: Float[Tensor, "n2 d2"]) -> float:
        """How alike two sets of features of the same images are, row by row.

        Raises ValueError for different numbers of images, fewer than ``least``, or values that are not finite.
        """
        if len(x) != len(y):
            raise ValueError(
                f"{len(x)} and {len(y)} images: a similarity is between features of the same images."
            )
        if len(x) < self.least:
            raise ValueError(f"{self.title} needs {self.least} or more images, got {len(x)}.")
        return self.compare(self.prepare(x), self.prepare(y))

    def reordered(self, prepared: Tensor, order: Int64[Tensor, " n"]) -> Tensor:
        """What `prepare` would give for the same images in another order: for a permutation baseline."""
        rows = prepared[order]
        return rows[:, order] if self.relational else rows

    def caution(self, n: int, d1: int, d2: int) -> str:
        """What to keep in mind with so many images and dimensions; empty where there are enough."""
        if n < self.least:
            return f"not shown: {n} images are too few for {self.title}. Use {self.least} or more."
        if not self.over_width or n > 5 * max(d1, d2):
            return ""
        if n <= max(d1, d2):
            return (
                f"not shown: {n} images span all of at most {n} dimensions, so any two representations of width "
                f"{max(d1, d2)} agree. Use more than {max(d1, d2)} images, better {5 * max(d1, d2)}."
            )
        return f"{n} images for {max(d1, d2)} dimensions: chance is high, read it against the permuted value."

    def silent(self, n: int, d1: int, d2: int) -> bool:
        """Whether a number would mislead: `caution` says why."""
        return n < self.least or (self.over_width and n <= max(d1, d2))
