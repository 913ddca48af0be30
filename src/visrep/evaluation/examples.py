"""Pictures of what a protocol found: of a few judged images the answers, and beside them what each encoder said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

MOST = 4
"""examples of a protocol"""
Picture = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True, eq=False)
class Example:
    """One judged image, and what one encoder said of it: pictures of one size."""

    known: dict[str, Picture]
    """by what they show: the image, the true answer; the same whoever is judged"""
    found: Picture
    legend: dict[str, str] = field(default_factory=dict)
    """what colours (#rrggbb) in these pictures stand for: a name -> its colour"""


@dataclass(frozen=True, eq=False)
class Strip:
    """Pictures of one size beside each other."""

    titles: tuple[str, ...]
    """of what is known, then who is judged: trained, untrained, pixels"""
    pictures: UInt8[np.ndarray, "columns h w 3"]
    legend: dict[str, str] = field(default_factory=dict)


def spread(n: int, most: int = MOST) -> list[int]:
    """At most so many of ``n`` things in order, evenly apart, so that sorted ones are not all of one kind."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64)).tolist()


def some_of(folds: Iterable[Sequence[Example]]) -> list[Example]:
    """As many as are shown, of the examples of all folds."""
    joined = [example for fold in folds for example in fold]
    return [joined[i] for i in spread(len(joined))]


def strips(found: Mapping[str, Sequence[Example]]) -> list[Strip]:
    """A strip for each image, of the examples of all that were judged on it, by who they are.

    The legend is that of the first: baselines guess so many classes that a longer one would not be read.
    """
    return [_strip(found, examples) for examples in zip(*found.values(), strict=True)]


def _strip(who: Iterable[str], examples: Sequence[Example]) -> Strip:
    known = examples[0].known
    pictures = [*known.values(), *(example.found for example in examples)]
    return Strip((*known, *who), np.stack(pictures), examples[0].legend)
