"""Alignment, uniformity and feature std as measures; the functions are in `visrep.analysis.spectra`."""

from __future__ import annotations

from visrep.analysis.measures.base import Measure
from visrep.analysis.spectra import alignment, feature_std, uniformity

ALIGNMENT = Measure(
    name="alignment",
    title="alignment",
    variant="mean squared distance of two views of an image, vectors of length 1",
    compares="Compares encoders under the same views, and only together with uniformity: an encoder that gives one "
    "vector to everything is perfectly aligned.",
    better="",
    of=alignment,
    needs="pair",
)
UNIFORMITY = Measure(
    name="uniformity",
    title="uniformity",
    variant="log mean exp(-2 squared distance) over pairs of different rows, vectors of length 1",
    compares="Compares encoders of any width on the same images, hardly depending on their number; -4 is the best "
    "for many dimensions, and random vectors reach it.",
    better="lower",
    of=uniformity,
)
FEATURE_STD = Measure(
    name="feature-std",
    title="feature std",
    variant="standard deviation over images of vectors of length 1, mean over dimensions",
    compares="Tells a collapse to one vector (0) from an even spread (1 / root of the width); compare it between "
    "widths only after multiplying by that root.",
    better="higher",
    of=feature_std,
)
