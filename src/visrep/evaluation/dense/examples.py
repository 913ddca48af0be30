"""What dense protocols say of some of the images, as pictures."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from visrep.data.dense import IGNORE
from visrep.data.playground_pairs import PointPair, Points
from visrep.evaluation.dense.boxes import Box
from visrep.evaluation.dense.drawing import (
    boxed,
    depth_painted,
    dotted,
    legend_of,
    overlaid,
    painted,
    photo,
    scaled,
)
from visrep.evaluation.dense.exam import DenseSide
from visrep.evaluation.examples import Example, spread

POINTS = 10
"""of a pair that are shown"""


def class_examples(side: DenseSide, found: Integer[Tensor, "n s s"]) -> list[Example]:
    """Classes of each pixel. Where nobody is asked, no answer is shown: what differs from the truth is wrong."""
    return [
        _of_classes(side, row, true, np.where(true == IGNORE, IGNORE, said))
        for row, (true, said) in enumerate(zip(side.classes.numpy(), found.numpy(), strict=True))
    ]


def _of_classes(side: DenseSide, row: int, true: np.ndarray, found: np.ndarray) -> Example:
    image, names = photo(side, row), side.names
    shape = (image.shape[0], image.shape[1])
    known = {"image": image, "true classes": painted(true, names, shape)}
    legend = {**legend_of(true, names), **legend_of(found, names)}
    return Example(known, painted(found, names, shape), legend)


def depth_examples(side: DenseSide, found: Float[Tensor, "n s s"]) -> list[Example]:
    """Depth on one scale an image: that of its true depth."""
    examples: list[Example] = []
    for row, (true, said) in enumerate(zip(side.depth.numpy(), found.numpy(), strict=True)):
        image = photo(side, row)
        how = float(true.min()), float(true.max()), (image.shape[0], image.shape[1])
        known = {"image": image, "true depth": depth_painted(true, *how)}
        examples.append(Example(known, depth_painted(said, *how)))
    return examples


def box_example(side: DenseSide, row: int, truth: list[Box], found: Box) -> Example:
    """The box that was found over the true ones."""
    image = photo(side, row)
    return Example({"true boxes": boxed(image, truth)}, boxed(image, truth, found))


def region_example(
    side: DenseSide, row: int, true: Bool[np.ndarray, "h w"], found: Bool[np.ndarray, "rows columns"]
) -> Example:
    """A region of the image."""
    image = photo(side, row)
    return Example({"image": image, "true objects": overlaid(image, true)}, overlaid(image, found))


def video_example(
    side: DenseSide, first: int, last: int, given: np.ndarray, true: np.ndarray, found: np.ndarray
) -> Example:
    """Numbers of objects "h w": those given in the first frame, and in a later one those that are true and found."""
    start, end = photo(side, first), photo(side, last)
    known = {"first frame, given": overlaid(start, given), "last frame, true": overlaid(end, true)}
    return Example(known, overlaid(end, found))


def point_example(pair: PointPair, found: Points, right: Bool[np.ndarray, " m"]) -> Example:
    """Some of the points, each of one colour in all pictures; what is wrong is a ring."""
    some = spread(len(pair.points), POINTS)
    shape = (pair.source.shape[0], pair.source.shape[1])
    source, target = (scaled(image, shape) for image in (pair.source, pair.target))
    known = {
        "points": dotted(source, pair.points[some], shape),
        "where they are": dotted(target, pair.partners[some], shape),
    }
    return Example(known, dotted(target, found[some], shape, right[some]))
