"""The contract of data with an answer for every pixel: class, object, depth. An image is read as from any source."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from jaxtyping import Float32, Int64, Shaped

from visrep.data.source import Source, Subset

IGNORE = 255
"""in masks of classes: a pixel that nobody is asked about"""
Kind = Literal["classes", "instances", "depth", "video"]
"""what is known: three kinds of answers, and that images are the frames of videos (see `Source.groups`)"""


@dataclass(frozen=True, eq=False)
class Answers:
    """What is known of each pixel of one image."""

    classes: Int64[np.ndarray, "h w"] | None = None
    """a number of the source's ``names``, or `IGNORE`"""
    instances: Int64[np.ndarray, "h w"] | None = None
    """0 where there is no object, else its number; in a video an object keeps its number"""
    depth: Float32[np.ndarray, "h w"] | None = None
    """positive, greater is further away"""

    def resized(self, shape: tuple[int, int]) -> Answers:
        """Each pixel of ``shape`` (height, width) takes the answer that its centre falls on, so none is invented."""
        return Answers(*(None if x is None else nearest(x, shape) for x in self.all))

    @property
    def all(self) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        return self.classes, self.instances, self.depth


class DenseSource(Source):
    """Images with `Answers`. Frames of a video follow each other in order and share a number in ``groups``."""

    names: tuple[str, ...]
    """of classes, by the numbers in masks; () without masks of classes"""
    knows: frozenset[Kind]
    """the same for every image"""

    @abstractmethod
    def answers(self, index: int, shape: tuple[int, int] | None = None) -> Answers:
        """Of one image: at its own size, or squashed to ``shape`` (height, width) as canvases are.

        Raises ValueError for a mask that cannot be read or does not fit its image.
        """

    def mark(self, index: int) -> bytes:
        """What tells the answers of one image from others that its `key` could have; nothing where the key does."""
        return b""


@final
class DenseSubset(Subset, DenseSource):
    """Some of the images of another source, in the order given."""

    def __init__(self, source: DenseSource, indices: Sequence[int] | np.ndarray, name: str = "") -> None:
        super().__init__(source, indices, name)
        self.dense = source
        self.names, self.knows = source.names, source.knows

    def answers(self, index: int, shape: tuple[int, int] | None = None) -> Answers:
        return self.dense.answers(int(self.indices[index]), shape)

    def mark(self, index: int) -> bytes:
        return self.dense.mark(int(self.indices[index]))


def nearest(values: Shaped[np.ndarray, "h w"], shape: tuple[int, int]) -> Shaped[np.ndarray, "rows columns"]:
    """Values at the centres of the pixels of another shape (height, width)."""
    y, x = (
        np.minimum((np.arange(new) + 0.5) * old / new, old - 1).astype(np.int64)
        for old, new in zip(values.shape, shape, strict=True)
    )
    return values[np.ix_(y, x)]
