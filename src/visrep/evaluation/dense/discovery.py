"""Unsupervised discovery of objects: CorLoc, the share of images whose one box fits some object (IoU of 0.5 or more).

The box is that of `lost` or `tokencut`, on the keys of the last block or what stands in for them (see `keys`). Images
without an object are left out; true boxes are those of `objects.true_boxes`, of the masks at their own size: squashing
an image to a square changes no IoU of boxes. Intervals are bootstrap over images, of frames over videos.

With ``@native`` the encoder sees each image as published: at its own size, normalised, zeros below and at the right up
to whole patches, which a box does not reach into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from visrep.evaluation.dense.boxes import CENTRE, WHOLE, Box, overlap
from visrep.evaluation.dense.exam import Exam
from visrep.evaluation.dense.examples import box_example
from visrep.evaluation.dense.intervals import interval
from visrep.evaluation.dense.keys import keys_or_tokens, kind_of
from visrep.evaluation.dense.lost import EXPANSION, Found, lost
from visrep.evaluation.dense.native import (
    as_wanted,
    check_patches,
    image_of,
    padded,
    planes,
)
from visrep.evaluation.dense.objects import true_boxes
from visrep.evaluation.dense.tokencut import EPS, TAU, tokencut
from visrep.evaluation.examples import spread
from visrep.evaluation.results import Inapplicable, Measure, Setting
from visrep.progress import within

RIGHT = 0.5
"""intersection over union from which on a box is right"""
GUESSES = {"a box in the middle, half of the image": CENTRE, "the whole image": WHOLE}
"""what needs no encoder"""
Search = Callable[[torch.Tensor, tuple[int, int]], Found]
Seen = tuple[int, Float[Tensor, "n d"], tuple[int, int], tuple[float, float]]
"""row of an image, features of its patches, their rows and columns, and height and width of these in images"""


def discovery_lost(exam: Exam) -> list[Measure]:
    """CorLoc of LOST. Raises Inapplicable when no image has an object."""
    return _corloc("discovery-lost", lost, {"expansion": EXPANSION}, exam, squashed)


def discovery_lost_native(exam: Exam) -> list[Measure]:
    """CorLoc of LOST, images at their own size. Raises Inapplicable when no image has an object or one is too large."""
    return _corloc("discovery-lost@native", lost, {"expansion": EXPANSION}, exam, native)


def discovery_tokencut(exam: Exam) -> list[Measure]:
    """CorLoc of TokenCut. Raises Inapplicable when no image has an object."""
    return _corloc("discovery-tokencut", tokencut, {"tau": TAU, "eps": EPS}, exam, squashed)


def discovery_tokencut_native(exam: Exam) -> list[Measure]:
    """CorLoc of TokenCut, otherwise as `discovery_lost_native`."""
    return _corloc("discovery-tokencut@native", tokencut, {"tau": TAU, "eps": EPS}, exam, native)


Looking = Callable[[str, Exam, list[int]], Iterator[Seen]]
"""features of the images of some rows, for the protocol of this name"""


def _corloc(
    protocol: str, search: Search, settings: dict[str, Setting], exam: Exam, looking: Looking
) -> list[Measure]:
    truth = {
        row: boxes
        for row, index in enumerate(exam.test.index.tolist())
        if (boxes := true_boxes(exam.test.source.answers(index), exam.test.names))
    }
    if not truth:
        raise Inapplicable(f"{protocol} looks for objects, and none of the {len(exam.test)} images has one.")
    found = {
        row: in_image(search(features, grid).box, size)
        for row, features, grid, size in looking(protocol, exam, list(truth))
    }
    hits = np.array([is_right(found[row], boxes) for row, boxes in truth.items()])
    guessed = {
        name: 100 * float(np.mean([is_right(guess, boxes) for boxes in truth.values()]))
        for name, guess in GUESSES.items()
    }
    value = float(hits.mean())
    best = max(guessed, key=lambda name: guessed[name])
    caution = f"{protocol} finds no more objects than {best} ({guessed[best]:.1f} %)"
    network = exam.network
    assert network is not None, "discovery reads the network"
    own: dict[str, Setting] = {"image": exam.image}
    if looking is native:
        own = {"image": "own size", "grid": f"{network.stride}-pixel"}
    rows = list(truth)
    groups, shown = exam.test.groups[rows], [rows[number] for number in spread(len(rows))]
    return [
        Measure(
            protocol,
            "CorLoc",
            value,
            *interval(hits, groups, seed=exam.seed),
            {**settings, "features": kind_of(network), **own},
            caution if 100 * value <= guessed[best] else "",
            n_test=len(hits),
            details={name: round(share, 2) for name, share in guessed.items()},
            examples=[box_example(exam.test, row, truth[row], found[row]) for row in shown],
        )
    ]


def squashed(protocol: str, exam: Exam, rows: list[int]) -> Iterator[Seen]:
    """Of squares of one size."""
    network, wanted = exam.network, frozenset(rows)
    assert network is not None, "discovery reads the network"
    row = 0
    for pixels in exam.pixels(exam.test):
        features, grid = keys_or_tokens(network, pixels)
        for each in features.float().cpu():
            if row in wanted:
                yield row, each, grid, (1.0, 1.0)
            row += 1


def native(protocol: str, exam: Exam, rows: list[int]) -> Iterator[Seen]:
    """Of images at their own size, one by one. Raises Inapplicable for one of too many patches."""
    network = exam.network
    assert network is not None, "discovery reads the network"
    for row in within(rows, "images"):
        image = image_of(exam.test, row)
        shape = (image.shape[0], image.shape[1])
        check_patches(protocol, exam.test.source.key(int(exam.test.index[row])), shape, network.stride)
        pixels = as_wanted(planes(image).to(exam.device) / 255, network.preprocessing)
        seen = padded(pixels[None], network.stride, centre=False)
        features, grid = keys_or_tokens(network, seen)
        yield row, features[0].float().cpu(), grid, (seen.shape[2] / shape[0], seen.shape[3] / shape[1])


def in_image(box: Box, size: tuple[float, float]) -> Box:
    """A box in shares of all patches in shares of the image at their upper left; ``size``: of all patches in images."""
    h, w = size
    return Box(min(box.top * h, 1), min(box.left * w, 1), min(box.bottom * h, 1), min(box.right * w, 1))


def is_right(box: Box, truth: list[Box]) -> bool:
    """Whether it fits one of the true boxes."""
    return any(overlap(box, other) >= RIGHT for other in truth)
