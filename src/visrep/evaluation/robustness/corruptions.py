"""Robustness to common corruptions (ImageNet-C, arXiv:1903.12261): a linear probe of clean images on corrupted ones.

Up to 500 test images, as the encoder gets them, are changed in 15 ways, each image at one of five severities, which
take turns: a fifth of the images has each severity, and every image meets every kind. The mean over images, kinds and
severities is that of the published protocol, at a fifth of its cost. A corruption error is 100 minus the accuracy. It
is not divided by AlexNet's, which exists for ImageNet only; instead it stands beside the error on clean images, and
"kept" is the accuracy on corrupted images as a share of that on clean ones. "invariance" compares features: 1 is the
direction of the clean image's vector, 0 as far off as another image.

*Deviations*: one severity an image and kind; images at the encoder's size, where ImageNet-C has 224 pixels: strengths
are of that size, and blurs of a fixed radius are harsher on smaller images. Compare encoders of one size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from visrep.evaluation.results import Inapplicable, Measure, Setting
from visrep.evaluation.robustness.base import (
    BATCH,
    Found,
    Subjects,
    cosine_of_others,
    cosines,
    invariance,
    near_chance,
    normalised,
    share,
    squares,
)
from visrep.evaluation.robustness.corrupting import KINDS, SMALLEST, corrupted, severities_in_turn

NAME = "corruptions"
RESAMPLES = 1000


def corruptions(subjects: Subjects) -> Found:
    """Accuracy over corrupted images, its share of that over clean ones, and invariance, for each layer and pooling.

    Raises Inapplicable for clips, few images, images below 32 pixels, or without the package that makes corruptions.
    """
    chosen = subjects.chosen(NAME)
    clean = pictures(subjects, chosen)
    made = _encoded(subjects, clean)
    labels = subjects.test.labels[chosen]
    found: Found = {}
    for where, vectors in subjects.vectors.items():
        before = vectors[chosen]
        after = [part[where] for part in made]
        first, *others = subjects.answers(where, before, *after)
        right = torch.stack([answer == labels for answer in others])
        cosine = torch.stack([cosines(x, before) for x in after])
        found[where] = measures(
            first == labels,
            right,
            cosine,
            cosine_of_others(before),
            subjects,
            near_chance(NAME, first == labels, labels),
        )
    return found


def pictures(subjects: Subjects, chosen: Tensor) -> UInt8[np.ndarray, "n h w 3"]:
    """The test images to corrupt. Raises Inapplicable where they cannot be."""
    expects = subjects.encoder.preprocessing
    if expects.size < SMALLEST:
        raise Inapplicable(
            f"corruptions are defined for images of {SMALLEST} pixels and more, and this encoder sees {expects.size}. "
            "Leave them out."
        )
    images = squares(subjects.test.rows(chosen), expects)
    try:
        corrupted(images[:1], "brightness", [1], seed=0)
    except ImportError as missing:
        raise Inapplicable(f"no corruptions: {missing}") from missing
    return images


def measures(
    clean: Bool[Tensor, " n"],
    right: Bool[Tensor, "k n"],
    cosine: Float[Tensor, "k n"],
    others: float,
    subjects: Subjects,
    caution: str,
) -> list[Measure]:
    """Of one layer and pooling, from what the probe got right and cosines with the clean image, a row a kind."""
    accuracy, before = right.double().mean(0), float(clean.double().mean())
    settings: dict[str, Setting] = {
        "clean": 100 * before,
        "mCE": 100 - 100 * float(accuracy.mean()),
        "relative_mCE": 100 * (before - float(accuracy.mean())),
    }
    of_kinds, likeness = (
        {kind: 100 * float(row.double().mean()) for kind, row in zip(KINDS, rows, strict=True)}
        for rows in (right, cosine)
    )
    n_train, seed, n_test = subjects.n_fitted, subjects.seed, len(clean)
    value, low, high = kept(accuracy.numpy(), clean.double().numpy(), seed)
    each = invariance(cosine, others).mean(0)
    return [
        share(NAME, "corrupted top-1", accuracy, settings, seed=seed, n_train=n_train, details=of_kinds),
        Measure(
            NAME, "kept", value, low, high, {"clean": 100 * before}, caution, n_train=n_train, n_test=n_test
        ),
        share(NAME, "invariance", each, {"cosine_of_others": others}, seed=seed, details=likeness),
    ]


def kept(
    after: Float[np.ndarray, " n"], before: Float[np.ndarray, " n"], seed: int
) -> tuple[float, float, float]:
    """Accuracy after a change as a share of that before it, with an interval over images drawn in pairs."""
    rows = np.random.default_rng(seed).integers(len(after), size=(RESAMPLES, len(after)))
    ratios = after[rows].mean(1) / np.maximum(before[rows].mean(1), 1 / len(before))
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(after.mean() / max(before.mean(), 1 / len(before))), float(low), float(high)


def _encoded(subjects: Subjects, clean: UInt8[np.ndarray, "n h w 3"]) -> list[dict[tuple[int, str], Tensor]]:
    """Vectors of all images under each kind, in one pass."""
    parts = np.array_split(np.arange(len(clean)), -(-len(clean) // BATCH))

    def batches() -> Iterator[Tensor]:
        for kind in KINDS:
            changed = corrupted(clean, kind, severities_in_turn(len(clean), kind), seed=subjects.seed)
            for rows in parts:
                yield normalised(changed[rows], subjects.encoder.preprocessing)

    made = subjects.encoded(batches(), NAME, len(KINDS) * len(parts))
    n = len(clean)
    return [{key: x[i * n : (i + 1) * n] for key, x in made.items()} for i in range(len(KINDS))]
