"""A conversion proves itself on one image before anybody relies on it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from visrep.method import Encoder, Tokens

TOLERANCE = 1e-3
"""greatest difference in standard deviations of the tokens: rounding stays below, another network does not"""


def disagreement(ours: Encoder, theirs: Encoder) -> float:
    """Greatest difference of any token of any layer on one random image or clip, in standard deviations.

    Where theirs counts more layers, such as the stem of a ResNet, the last ones are compared.
    """
    seen = theirs.preprocessing
    shape = (1, *([seen.frames] if seen.frames else []), 3, seen.size, seen.size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    layers = tuple(range(1, ours.depth + 1))
    more = theirs.depth - ours.depth
    if more < 0:
        return float("inf")
    with torch.no_grad():
        tokens = ours(images, layers=layers), theirs(images, layers=tuple(layer + more for layer in layers))
        return max(_difference(a, b) for a, b in zip(*map(_all, tokens), strict=True))


def _all(tokens: Tokens) -> Iterable[Tensor | None]:
    for part in (tokens, *tokens.layers):
        yield from (part.cls, part.registers, part.patches)


def _difference(ours: Tensor | None, theirs: Tensor | None) -> float:
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else float("inf")
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max() / theirs.std())
