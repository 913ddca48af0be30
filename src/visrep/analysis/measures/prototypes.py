"""Prototypes: how many a method uses, and how evenly."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from visrep.analysis.measures.base import Measure
from visrep.functional import entropy, share_in_use


def prototype_use(codes: Float[Tensor, "n k"]) -> float:
    """Share of the k prototypes that are the most likely one of some image, 1/k to 1.

    At most n / k with n images. What DINO, iBOT, SwAV and others log while training under this name, there over the
    global crops of a batch. Raises ValueError unless the rows are probabilities.
    """
    return float(share_in_use(_checked(codes)))


def prototype_entropy(codes: Float[Tensor, "n k"]) -> float:
    """Entropy of the mean code over log k: 1 when all prototypes are used equally, 0 when all images share one.

    What DINO, iBOT, SwAV and others log while training under this name, there over a batch.
    Raises ValueError unless the rows are probabilities.
    """
    codes = _checked(codes)
    return float(entropy(codes.mean(0)) / math.log(codes.shape[1]))


def code_entropy(codes: Float[Tensor, "n k"]) -> float:
    """Mean entropy of a code over log k: 0 when every image has one prototype for sure, 1 when none is told apart.

    Low together with a high `prototype_entropy` is what these methods want. Raises ValueError unless the rows are
    probabilities.
    """
    codes = _checked(codes)
    return float(entropy(codes).mean() / math.log(codes.shape[1]))


def _checked(codes: Tensor) -> Tensor:
    codes = codes.detach().double()
    if codes.shape[1] < 2 or not bool(((codes.sum(1) - 1).abs() < 1e-3).all()) or bool((codes < 0).any()):
        raise ValueError("codes are one row an image, probabilities over 2 or more prototypes that sum to 1.")
    return codes


PROTOTYPE_USE = Measure(
    name="prototype-use",
    title="prototypes in use",
    variant="share of prototypes that are the most likely one of some image",
    compares="Compares runs with the same number of prototypes on the same number of images, many times that of "
    "the prototypes; it is about the head that is thrown away, not about the features.",
    better="",
    of=prototype_use,
    needs="codes",
    over_width=True,
)
PROTOTYPE_ENTROPY = Measure(
    name="prototype-entropy",
    title="prototype entropy",
    variant="entropy of the mean code over log k",
    compares="Tells a collapse onto few prototypes from a sound use of them at any number; above that alarm more is "
    "not better.",
    better="",
    of=prototype_entropy,
    needs="codes",
    over_width=True,
)
CODE_ENTROPY = Measure(
    name="code-entropy",
    title="code entropy",
    variant="mean entropy of a code over log k",
    compares="Tells a teacher that decides from one that does not, at the same temperature; lower is not better by "
    "itself.",
    better="",
    of=code_entropy,
    needs="codes",
)
