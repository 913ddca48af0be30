"""Correspondence: a point of one image is looked for in another by its features alone (arXiv:2306.03881).

The maps of patch features of both images are enlarged linearly to the size of the images; the pixel with the highest
cosine to the point's feature is the answer. It is right when it lies no further from the true place than a tenth of the
longer side of the box around the object there: PCK@0.1, the percentage of correct keypoints. Published numbers are of
either average, over pairs of images or over all points; both are given. Nothing is trained.

Pairs are the playground's, where points are known exactly (see `visrep.data.playground_pairs`): the same objects moved,
and different objects of one shape, which asks for parts that mean the same. Intervals are bootstrap over pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from visrep.data.arrays import Arrays
from visrep.data.canvas import CanvasSet
from visrep.data.dense import DenseSource, DenseSubset
from visrep.data.dense_playground import DensePlayground
from visrep.data.playground_pairs import KINDS, PlaygroundPairs, PointPair
from visrep.evaluation.dense.exam import Exam
from visrep.evaluation.dense.examples import point_example
from visrep.evaluation.dense.intervals import interval
from visrep.evaluation.dense.patches import extract_patches, pixel_patches
from visrep.evaluation.examples import spread
from visrep.evaluation.results import Inapplicable, Measure, Setting

REACH = 0.1
"""of the longer side of the object's box"""
Places = list[Float64[np.ndarray, "_ 2"]]
"""rows and columns, pair by pair"""
Hits = list[Bool[np.ndarray, " _"]]
MOST = 200
"""pairs of a kind"""
SHOWN = 2
"""pairs of a kind"""


def matched(
    source: Float[Tensor, "d rows columns"],
    target: Float[Tensor, "d rows columns"],
    points: Float64[np.ndarray, "m 2"],
    shape: tuple[int, int],
) -> Float64[np.ndarray, "m 2"]:
    """The place in the target image of each point of the source image: rows and columns in pixels, both of ``shape``.

    The first of several pixels that are equally near, row by row.
    """
    large = F.interpolate(torch.stack([source, target]), size=shape, mode="bilinear", align_corners=False)
    rows, columns = torch.from_numpy(np.floor(points).astype(np.int64)).T.to(large.device)
    wanted = F.normalize(large[0][:, rows, columns], dim=0)
    found = (wanted.T @ F.normalize(large[1].flatten(1), dim=0)).argmax(1).cpu().numpy()
    return np.stack([found // shape[1], found % shape[1]], axis=1) + 0.5


def correct(
    found: Float64[np.ndarray, "m 2"],
    true: Float64[np.ndarray, "m 2"],
    extent: float,
    *,
    reach: float = REACH,
) -> Bool[np.ndarray, " m"]:
    """Whether each answer is near enough; ``extent`` is the longer side of the object's box in pixels."""
    return np.linalg.norm(found - true, axis=1) <= reach * extent


def correspondence(exam: Exam) -> list[Measure]:
    """PCK@0.1 by pair and by point, of both kinds of pairs, with those of answers that need no encoder.

    As many pairs of a kind as images are judged, 200 at most. Raises Inapplicable for other data than the playground.
    """
    source = _playground(exam.test.source)
    n = min(MOST, len(exam.test))
    split = "test" if source.split == "test" else "train"
    measures: list[Measure] = []
    for kind in KINDS:
        pairs = PlaygroundPairs(n, source.size, source.seed, split, kind)
        measures += _measures(exam, [pairs.pair(index) for index in range(n)], kind)
    return measures


def _playground(source: DenseSource) -> DensePlayground:
    while isinstance(source, DenseSubset):
        source = source.dense
    if not isinstance(source, DensePlayground):
        raise Inapplicable(
            f"correspondence needs points that are known to belong together, which {source.name} does not have. Judge "
            "it with --data playground."
        )
    return source


def _measures(exam: Exam, pairs: list[PointPair], kind: str) -> list[Measure]:
    n = len(pairs)
    images = np.stack([*(pair.source for pair in pairs), *(pair.target for pair in pairs)])
    canvases = CanvasSet(Arrays(images, None, "pairs"), exam.test.size)
    assert exam.network is not None, "correspondence encodes images of its own"
    found = extract_patches(
        exam.network, canvases, layer=exam.layer, size=exam.image, device=exam.device, progress=exam.progress
    )
    colours = pixel_patches(canvases, (found.tokens.shape[1], found.tokens.shape[2]))
    places = found_places(found.tokens, pairs)
    right = hits(places, pairs)
    others = {
        "colours and places of patches": hits(found_places(colours.tokens, pairs), pairs),
        "the same place": [correct(pair.points, pair.partners, pair.extent) for pair in pairs],
    }
    settings: dict[str, Setting] = {"reach": REACH, "points": sum(map(len, right)), "image": exam.image}
    measures: list[Measure] = []
    for name, average in AVERAGES.items():
        values, groups = average(right)
        details = {other: round(100 * float(average(each)[0].mean()), 2) for other, each in others.items()}
        metric, ends = f"PCK@{REACH} by {name}, {kind}", interval(values, groups, seed=exam.seed)
        measures.append(
            Measure(
                "correspondence", metric, float(values.mean()), *ends, {**settings}, n_test=n, details=details
            )
        )
    first, *rest = measures
    shown = [point_example(pairs[i], places[i], right[i]) for i in spread(n, SHOWN)]
    return [replace(first, examples=shown), *rest]


def found_places(tokens: Float[Tensor, "n h w d"], pairs: list[PointPair]) -> Places:
    """Of each pair, where its points are found; patch features of all first and then of all second images."""
    maps = tokens.float().permute(0, 3, 1, 2)
    return [
        matched(source, target, pair.points, (pair.source.shape[0], pair.source.shape[1]))
        for pair, source, target in zip(pairs, *maps.chunk(2), strict=True)
    ]


def hits(found: Places, pairs: list[PointPair]) -> Hits:
    """Of each pair, whether its points are found."""
    return [correct(places, pair.partners, pair.extent) for places, pair in zip(found, pairs, strict=True)]


def by_image(right: Hits) -> tuple[np.ndarray, np.ndarray]:
    """The share of each pair, and its group, for `interval`."""
    return np.array([each.mean() for each in right]), np.arange(len(right))


def by_point(right: Hits) -> tuple[np.ndarray, np.ndarray]:
    """Every point, and the pair that it is of."""
    return np.concatenate(right).astype(np.float64), np.repeat(np.arange(len(right)), list(map(len, right)))


AVERAGES: dict[str, Callable[[Hits], tuple[np.ndarray, np.ndarray]]] = {"image": by_image, "point": by_point}
"""what of a list of pairs is averaged; the first stands for the protocol"""
