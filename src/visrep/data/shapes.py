"""The playground's shapes, as signed distances: negative inside, positive outside, zero on the outline.

Coordinates are local to the object: ``x`` to the right, ``y`` down, the shape within about the unit circle.
Distances are exact near the outline, where they make the antialiased edge, and close enough elsewhere for
shadows and shading.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

Map = Float32[np.ndarray, "h w"]
_SIN36, _COS36 = math.sin(math.pi / 5), math.cos(math.pi / 5)


def _radius(x: Map, y: Map) -> Map:
    return np.sqrt(x * x + y * y)  # three times as fast as np.hypot, and nothing here overflows


def _fold_five(x: Map, y: Map) -> tuple[Map, Map]:
    """Mirror the plane onto the wedge within 36 degrees right of straight up, without an arctangent."""
    x = np.abs(x)
    for _ in range(2):
        beyond = np.maximum(x * _COS36 + y * _SIN36, 0.0)
        x, y = np.abs(x - 2 * _COS36 * beyond), y - 2 * _SIN36 * beyond
    return x, y


def circle(x: Map, y: Map) -> Map:
    return _radius(x, y) - 0.85


def square(x: Map, y: Map) -> Map:
    return np.maximum(np.abs(x), np.abs(y)) - 0.74


def triangle(x: Map, y: Map) -> Map:
    return np.maximum(y, math.sqrt(0.75) * np.abs(x) - 0.5 * y) - 0.52


def star(x: Map, y: Map) -> Map:
    x, y = _fold_five(x, y)
    notch = 0.46  # radius of the inner corners; the tips are at 1
    across, along = 1 - notch * _COS36, notch * _SIN36
    return (across * x - along * (y + 1)) / math.hypot(across, along)


def flower(x: Map, y: Map) -> Map:
    x, y = _fold_five(x, y)
    return np.minimum(_radius(x, y + 0.6) - 0.38, _radius(x, y) - 0.4)


def ring(x: Map, y: Map) -> Map:
    return np.abs(_radius(x, y) - 0.66) - 0.23


def cross(x: Map, y: Map) -> Map:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - 0.92, np.minimum(x, y) - 0.29)


def crescent(x: Map, y: Map) -> Map:
    """Opens to the right."""
    x = x - 0.2
    return np.maximum(_radius(x, y) - 0.92, 0.72 - _radius(x - 0.43, y))


def heart(x: Map, y: Map) -> Map:
    """A square on its corner with a disc on each upper side."""
    half = 0.78
    x, y = np.abs(x), y - 0.1 * half
    lobe = _radius(x - half / 2, y + half / 2) - half / math.sqrt(2)
    return np.minimum((x + np.abs(y) - half) / math.sqrt(2), lobe)


def arrow(x: Map, y: Map) -> Map:
    """Points right."""
    y = np.abs(y)
    head = np.maximum(0.0 - x, (0.78 * (x - 0.95) + 0.95 * y) / math.hypot(0.78, 0.95))
    shaft = np.maximum(np.abs(x + 0.4) - 0.5, y - 0.27)
    return np.minimum(head, shaft)


SHAPES: dict[str, Callable[[Map, Map], Map]] = {
    f.__name__: f for f in (circle, square, triangle, star, flower, ring, cross, crescent, heart, arrow)
}
"""name to signed distance; the order is the order of the labels"""
