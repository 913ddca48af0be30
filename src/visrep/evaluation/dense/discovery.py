"""Unsupervised discovery of objects: CorLoc, the share of images whose one box fits some object (IoU of 0.5 or more).

The box is that of `lost` or `tokencut`, on the keys of the last block or what stands in for them (see `keys`). Images
without an object are left out; true boxes are those of `objects.true_boxes`, of the masks at their own size: squashing
an image to a square changes no IoU of boxes. Intervals are bootstrap over images, of frames over videos.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from visrep.evaluation.dense.boxes import CENTRE, WHOLE, Box, overlap
from visrep.evaluation.dense.exam import Exam
from visrep.evaluation.dense.examples import box_example
from visrep.evaluation.dense.intervals import interval
from visrep.evaluation.dense.keys import keys_or_tokens, kind_of
from visrep.evaluation.dense.lost import EXPANSION, Found, lost
from visrep.evaluation.dense.objects import true_boxes
from visrep.evaluation.dense.tokencut import EPS, TAU, tokencut
from visrep.evaluation.examples import spread
from visrep.evaluation.results import Inapplicable, Measure, Setting

RIGHT = 0.5
"""intersection over union from which on a box is right"""
GUESSES = {"a box in the middle, half of the image": CENTRE, "the whole image": WHOLE}
"""what needs no encoder"""
Search = Callable[[torch.Tensor, tuple[int, int]], Found]


def discovery_lost(exam: Exam) -> list[Measure]:
    """CorLoc of LOST. Raises Inapplicable when no image has an object."""
    return _corloc("discovery-lost", lost, {"expansion": EXPANSION}, exam)


def discovery_tokencut(exam: Exam) -> list[Measure]:
    """CorLoc of TokenCut. Raises Inapplicable when no image has an object."""
    return _corloc("discovery-tokencut", tokencut, {"tau": TAU, "eps": EPS}, exam)


def _corloc(protocol: str, search: Search, settings: dict[str, Setting], exam: Exam) -> list[Measure]:
    truth = {
        row: boxes
        for row, index in enumerate(exam.test.index.tolist())
        if (boxes := true_boxes(exam.test.source.answers(index), exam.test.names))
    }
    if not truth:
        raise Inapplicable(f"{protocol} looks for objects, and none of the {len(exam.test)} images has one.")
    found = _boxes(exam, search, frozenset(truth))
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
    rows = list(truth)
    groups, shown = exam.test.groups[rows], [rows[number] for number in spread(len(rows))]
    return [
        Measure(
            protocol,
            "CorLoc",
            value,
            *interval(hits, groups, seed=exam.seed),
            {**settings, "features": kind_of(network), "image": exam.image},
            caution if 100 * value <= guessed[best] else "",
            n_test=len(hits),
            details={name: round(share, 2) for name, share in guessed.items()},
            examples=[box_example(exam.test, row, truth[row], found[row]) for row in shown],
        )
    ]


def _boxes(exam: Exam, search: Search, wanted: frozenset[int]) -> dict[int, Box]:
    """A box for each of the rows wanted."""
    network = exam.network
    assert network is not None, "discovery reads the network"
    found: dict[int, Box] = {}
    row = 0
    for pixels in exam.pixels(exam.test):
        features, grid = keys_or_tokens(network, pixels)
        for each in features.float().cpu():
            if row in wanted:
                found[row] = search(each, grid).box
            row += 1
    return found


def is_right(box: Box, truth: list[Box]) -> bool:
    """Whether it fits one of the true boxes."""
    return any(overlap(box, other) >= RIGHT for other in truth)
