"""LOST (arXiv:2109.14279): where is an object? A patch that resembles few others, and what resembles it.

Patches are alike when the product of their features is positive. The seed is the patch with the fewest that are alike;
it is expanded by those of the ``k`` patches with the fewest that are like the seed. All patches with a positive product
with the sum of these are the object, as far as they hang together with the seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from visrep.evaluation.dense.boxes import Box, around, connected_to

EXPANSION = 100
"""patches among which those like the seed are looked for, of some 900 in the paper"""


@dataclass(frozen=True, eq=False)
class Found:
    """An object that was found without labels."""

    seed: int
    """the patch it grew from"""
    region: Bool[np.ndarray, "h w"]
    """patches of the object"""

    @property
    def box(self) -> Box:
        return around(self.region)


def lost(features: Float[Tensor, "n d"], grid: tuple[int, int], *, k: int = EXPANSION) -> Found:
    """The most salient object of one image. Patches with equally many that are alike come in their order.

    Raises ValueError when features do not fit the grid.
    """
    check_grid(features, grid)
    alike = features @ features.T
    order = degrees(alike).argsort(stable=True)
    seed = int(order[0])
    candidates = order[:k]
    similar = candidates[alike[seed, candidates] > 0]
    region = (alike[similar].sum(0) > 0).reshape(grid).cpu().numpy()
    row, column = divmod(seed, grid[1])
    region[row, column] = True  # it is, unless its features are all zero
    return Found(seed, connected_to(region, (row, column)))


def degrees(alike: Float[Tensor, "n n"]) -> Int64[Tensor, " n"]:
    """How many others each patch is like."""
    positive = alike > 0
    return positive.sum(1) - positive.diagonal().long()


def check_grid(features: Tensor, grid: tuple[int, int]) -> None:
    """Raises ValueError unless there is a feature for every cell."""
    if len(features) != grid[0] * grid[1]:
        raise ValueError(
            f"{len(features)} patch features do not fill a grid of {grid[0]} x {grid[1]}. Give one for each patch, "
            "row by row, without cls and registers."
        )
