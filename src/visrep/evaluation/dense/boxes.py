"""Boxes around objects: of a connected region, of known objects, and how well two of them agree.

A box is (top, left, bottom, right) with ends excluded, as shares of the image's height and width: agreement of boxes
does not change when an image is squashed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64
from scipy import ndimage


class Box(NamedTuple):
    """See above."""

    top: float
    left: float
    bottom: float
    right: float

    @property
    def area(self) -> float:
        return max(0.0, self.bottom - self.top) * max(0.0, self.right - self.left)


WHOLE = Box(0.0, 0.0, 1.0, 1.0)
CENTRE = Box(0.5 - 0.5**1.5, 0.5 - 0.5**1.5, 0.5 + 0.5**1.5, 0.5 + 0.5**1.5)
"""in the middle, with half of the image in it"""


def around(region: Bool[np.ndarray, "h w"]) -> Box:
    """The smallest box with all of a region. Raises ValueError for an empty one."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    if not len(rows):
        raise ValueError("a region without a single cell has no box.")
    h, w = region.shape
    return Box(float(rows[0]) / h, float(columns[0]) / w, float(rows[-1] + 1) / h, float(columns[-1] + 1) / w)


def connected_to(region: Bool[np.ndarray, "h w"], cell: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The part of a region that hangs together with one of its cells, over sides and not over corners."""
    parts, _ = parts_of(region)
    return (parts == parts[cell]) & region


def parts_of(region: Bool[np.ndarray, "h w"]) -> tuple[Int32[np.ndarray, "h w"], int]:
    """The connected parts of a region, numbered from 1 on, 0 outside of it; and how many there are."""
    parts = np.zeros(region.shape, dtype=np.int32)
    n: Any = ndimage.label(region, output=parts)
    return parts, n


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    both = Box(*np.maximum(one[:2], other[:2]).tolist(), *np.minimum(one[2:], other[2:]).tolist()).area
    return both / max(one.area + other.area - both, 1e-12)


def of_instances(instances: Int64[np.ndarray, "h w"]) -> list[Box]:
    """One box an object: around all that can be seen of it. 0 is no object."""
    return [around(instances == number) for number in np.unique(instances) if number]
