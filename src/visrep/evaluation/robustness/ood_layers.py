"""Classifiers on every layer, judged in and out of distribution (intermediate-layer classifiers, arXiv:2504.05461).

A linear probe for each layer, fitted on at most 2,000 training images as they are, is judged on up to 500 test images
as they are and on the same images changed: on the playground before another background, elsewhere corrupted, each in
one of 15 ways and one of five strengths (see `corruptions`). Often an earlier layer carries over better than the last;
where the best one lies is read off the curve, not chosen on these images.

*Deviations*: pooled vectors of each layer; the paper also tries probes that were fitted on few shifted images.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from visrep.evaluation.features import Parts
from visrep.evaluation.results import Inapplicable
from visrep.evaluation.robustness.base import BATCH, Found, Subjects, answers, encoded, normalised, share
from visrep.evaluation.robustness.corrupting import KINDS, SEVERITIES, corrupted
from visrep.evaluation.robustness.corruptions import pictures
from visrep.evaluation.robustness.swaps import drawn_anew, other_backgrounds, scenes
from visrep.views import center

NAME = "ood-layers"
FITTED = 2000
"""training images that the probe of each layer is fitted on"""


def ood_layers(subjects: Subjects) -> Found:
    """Accuracy out of and in distribution for each layer.

    Raises Inapplicable for clips, for few images, and where no image can be changed.
    """
    chosen = subjects.chosen(NAME)
    changed, how = _changed(subjects, chosen)
    labels = subjects.test.labels[chosen]
    assert subjects.train.labels is not None
    found: Found = {}
    depth, n_train = subjects.encoder.depth, min(FITTED, len(subjects.train))
    pooling = "cls" if (depth, "cls") in subjects.train.parts else "mean"
    for layer in range(1, depth + 1):
        where = layer, pooling
        sets = [subjects.judged.parts[where][chosen], changed[where]]
        inside, outside = answers(
            subjects.train.parts[where], subjects.train.labels, sets, subjects.seed, most=FITTED
        )
        found[where] = [
            share(
                NAME,
                f"{name} distribution",
                answer == labels,
                {"changed": how},
                seed=subjects.seed,
                n_train=n_train,
            )
            for name, answer in (("out of", outside), ("in", inside))
        ]
    return found


def _changed(subjects: Subjects, chosen: Tensor) -> tuple[Parts, str]:
    """cls and mean of every layer for changed images, and how they were changed."""
    images, expects = subjects.test.rows(chosen), subjects.encoder.preprocessing
    rows = torch.arange(len(chosen)).split(BATCH)
    try:
        plans, side = scenes(images, NAME)
    except Inapplicable:
        how, shifted = "corrupted", mixed(pictures(subjects, chosen), seed=subjects.seed)
        batches = (normalised(shifted[part.numpy()], expects) for part in rows)
    else:
        how, swapped = "other backgrounds", other_backgrounds(plans, subjects.seed)
        anew = drawn_anew(swapped, side, images.labels, images.canvases.size)
        batches = (center(anew.canvases.get(part.numpy()).to(subjects.device), expects) for part in rows)
    others, bar = tuple(range(1, subjects.encoder.depth)), (subjects.device, NAME, len(rows))
    return encoded(subjects.encoder, batches, others, *bar, progress=subjects.progress), how


def mixed(images: UInt8[np.ndarray, "n h w 3"], *, seed: int) -> UInt8[np.ndarray, "n h w 3"]:
    """Every image corrupted in one way, the kinds in turn, and within a kind the severities in turn."""
    found = images.copy()
    for number, kind in enumerate(KINDS):
        mine = np.arange(number, len(images), len(KINDS))
        if len(mine):
            severities = [SEVERITIES[(turn + number) % len(SEVERITIES)] for turn in range(len(mine))]
            found[mine] = corrupted(images[mine], kind, severities, seed=seed)
    return found
