"""What was written proves itself: loaded back as the other tool does, it must give the encoder's features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from visrep.exports.traced import example, other_size
from visrep.method import Encoder

LEAST = 0.9999
"""cosine with the encoder's features below which a file is not kept"""


@dataclass(frozen=True)
class Agreement:
    """How near the features are to the encoder's, on random images."""

    height: int
    width: int
    cosine: float
    """the lowest of all images"""
    error: float
    """the greatest difference of any value"""
    scale: float
    """standard deviation of the encoder's values"""


def agreement(
    encoder: Encoder, features: Callable[[Tensor], Tensor], b: int, height: int, width: int
) -> Agreement:
    """Compare the features of ``b`` random images of one size."""
    images = example(encoder, b, height, width, seed=b)
    with torch.no_grad():
        expected, found = encoder(images).pool().double(), features(images).double()
    return Agreement(
        height,
        width,
        float(F.cosine_similarity(expected, found, dim=-1).min()),
        float((expected - found).abs().max()),
        float(expected.std()),
    )


def check(encoder: Encoder, features: Callable[[Tensor], Tensor]) -> list[Agreement]:
    """Agreement at the encoder's own size, of one and of several images, and at another size where that works.

    Raises RuntimeError when features differ at the encoder's own size.
    """
    size = encoder.preprocessing.size
    found = [agreement(encoder, features, b, size, size) for b in (1, 3)]
    worst = min(found, key=lambda one: one.cosine)
    if not worst.cosine >= LEAST:
        raise RuntimeError(
            f"The exported encoder gives other features than yours: cosine {worst.cosine:.6f}, at least {LEAST} is "
            "needed. Nothing was kept. This is a mistake of visrep: please report it, with the encoder's configuration."
        )
    if not encoder.preprocessing.frames and (other := _elsewhere(encoder, features)):
        found.append(other)
    return [max(found[:2], key=lambda one: one.error), *found[2:]]


def _elsewhere(encoder: Encoder, features: Callable[[Tensor], Tensor]) -> Agreement | None:
    """Agreement at another size, None where either of the two does not take it."""
    try:
        return agreement(encoder, features, 2, *other_size(encoder))
    except Exception:  # each tool has exceptions of its own for images that it does not take
        return None
