"""Sensitivity to moving, turning and scaling, and shift consistency (arXiv:1904.11486).

Sensitivity: the cosine between an encoder's vectors of a window at rest and of the same window moved, turned or
scaled over the same image, for several amounts; up to 200 test images. The number of each curve is its mean, on a
scale where 1 is the same direction and 0 as far off as another image: invariance. Invariance is no virtue by itself:
an encoder that ignores its input is perfectly invariant to everything, which other protocols punish.

Consistency: the share of up to 500 test images for which a linear probe, fitted on images as they are, says the same
of two windows moved at random. By chance two answers agree as often as the answers are lopsided, which is given beside
it.

*Deviations*: Zhang crops 224 pixels at two random places of 256. Here a window of 0.7 of the shorter side moves by up
to a fourteenth of itself either way, which is as much: from end to end 32 of 224 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from visrep.evaluation.fitting import Images
from visrep.evaluation.results import Setting
from visrep.evaluation.robustness.base import (
    BATCH,
    Found,
    Subjects,
    cosine_of_others,
    cosines,
    invariance,
    share,
)
from visrep.evaluation.robustness.moves import Move, windows

NAME = "shifts"
CURVES: dict[str, dict[str, tuple[Move, ...]]] = {
    "translation": {
        f"{far:g}": (Move(right=far), Move(right=-far), Move(down=far), Move(down=-far))
        for far in (0.025, 0.05, 0.1, 0.2)
    },
    "rotation": {
        f"{degrees:g}": (Move(degrees=degrees), Move(degrees=-degrees)) for degrees in (5, 15, 30, 45, 90)
    },
    "scale": {f"{zoom:g}": (Move(zoom=zoom),) for zoom in (0.7, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0)},
}
"""amounts by kind, each with the moves that have it: in windows, degrees, and times as large"""
CURVED = 200
"""images of the curves, whose cosines scatter little"""
JITTER = 1 / 14
"""random shifts go so far either way: between two of them up to a seventh of the window"""


def shifts(subjects: Subjects) -> Found:
    """Consistency and three invariances for each layer and pooling.

    Raises Inapplicable for clips and for few images.
    """
    chosen = subjects.chosen(NAME)
    images = subjects.test.rows(chosen)
    moves = [
        Move(),
        *dict.fromkeys(move for curve in CURVES.values() for ms in curve.values() for move in ms),
    ]
    labels, seed = images.labels, subjects.seed
    few = images.rows(torch.arange(min(CURVED, len(images))))
    moved = _encoded(subjects, few, [[move] * len(few) for move in moves])
    jittered = _encoded(subjects, images, [random_moves(len(images), 2 * seed + i) for i in range(2)])
    found: Found = {}
    for where in subjects.vectors:
        views = [part[where] for part in moved]
        one, other = (part[where] for part in jittered)
        first, second = subjects.answers(where, one, other)
        said = torch.stack([first, second])
        settings: dict[str, Setting] = {
            "top-1": 100 * float((said == labels).double().mean()),
            "by_chance": 100 * agreement_by_chance(first, second),
        }
        rest, others = views[0], cosine_of_others(views[0])
        same = share(NAME, "consistency", first == second, settings, seed=seed, n_train=subjects.n_fitted)
        found[where] = [same]
        for kind, curve in CURVES.items():
            amounts = {
                amount: torch.stack([cosines(rest, views[moves.index(move)]) for move in ms]).mean(0)
                for amount, ms in curve.items()
            }
            details = {amount: 100 * float(cosine.mean()) for amount, cosine in amounts.items()}
            each = invariance(torch.stack(list(amounts.values())).mean(0), others)
            known: dict[str, Setting] = {"cosine_of_others": others}
            found[where].append(share(NAME, f"{kind} invariance", each, known, seed=seed, details=details))
    return found


def agreement_by_chance(first: Tensor, second: Tensor) -> float:
    """How often two answers agree that are drawn by themselves, each as often as it was given."""
    classes = torch.cat([first, second]).unique()
    shares = [(answers[:, None] == classes).double().mean(0) for answers in (first, second)]
    return float(shares[0] @ shares[1])


def random_moves(n: int, seed: int) -> list[Move]:
    """One an image, up to a fourteenth of the window either way."""
    far = np.random.default_rng(seed).uniform(-JITTER, JITTER, (n, 2))
    return [Move(right=right, down=down) for right, down in far.tolist()]


def _encoded(
    subjects: Subjects, images: Images, moves: list[list[Move]]
) -> list[dict[tuple[int, str], Tensor]]:
    """Vectors of every image's window: a list of ``moves`` with one an image gives one of the results."""
    rows = torch.arange(len(images)).split(BATCH)

    def batches() -> Iterator[Tensor]:
        for part in rows:
            canvases = images.canvases.get(images.index[part].numpy()).to(subjects.device)
            for drawn in moves:
                yield windows(canvases, [drawn[i] for i in part.tolist()], subjects.encoder.preprocessing)

    each = len(moves)
    made = subjects.encoded(batches(), NAME, each * len(rows))
    parts = {key: x.split([len(part) for part in rows for _ in range(each)]) for key, x in made.items()}
    return [{key: torch.cat(x[i::each]) for key, x in parts.items()} for i in range(each)]
