"""Pairs of playground images with points that belong together, known from the geometry of the objects.

``moved`` pairs show the same objects elsewhere, turned and of another size; ``kin`` pairs two different objects of one
shape, in other colours and textures before another background. Points lie on the main object, where it is seen in both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float64, UInt8

from visrep.data.playground import SPLITS, Playground
from visrep.data.scene import Plan, Thing, render

KINDS = ("moved", "kin")
POINTS = 128
"""on an object that fills the image; a smaller one has fewer, as its area, and one at least"""
LOPSIDED = frozenset({"crescent", "arrow"})
"""shapes whose mirror image is another: all others have their left on the left even when mirrored"""
TURN, GROWTH = 0.5, 1.25
"""of moved objects at most: radians, and a factor or its inverse"""
Points = Float64[np.ndarray, "m 2"]
"""rows and columns in pixels; the first pixel's centre is (0.5, 0.5)"""


@dataclass(frozen=True, eq=False)
class PointPair:
    """Two images, points in the first and where the same parts are in the second."""

    source: UInt8[np.ndarray, "h w 3"]
    target: UInt8[np.ndarray, "h w 3"]
    points: Points
    partners: Points
    extent: float
    """longer side in pixels of the box around what is seen of the object in the second image"""


class PlaygroundPairs:
    """``n`` pairs, of one of the `KINDS`; pair i depends on (kind, n, seed, split, i) only.

    Raises what `Playground` raises, and ValueError for another kind.
    """

    def __init__(
        self,
        n: int = 200,
        size: int = 64,
        seed: int = 0,
        split: Literal["train", "test"] = "test",
        kind: str = "moved",
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"there are no pairs of kind={kind!r}. Use one of: {', '.join(KINDS)}.")
        self.kind, self.n = kind, n
        self.scenes = Playground(2 * n + 20, size, seed, split)
        labels = np.asarray(self.scenes.labels)
        later = range(n, len(labels))  # each ten images in a row hold every shape, so there is one
        self._kin = [next(j for j in [*later[i:], *later[:i]] if labels[j] == labels[i]) for i in range(n)]

    def __len__(self) -> int:
        return self.n

    def pair(self, index: int) -> PointPair:
        """Raises IndexError beyond the last."""
        if not 0 <= index < self.n:
            raise IndexError(f"pair {index} of {self.n}")
        rng = np.random.default_rng([self.scenes.seed, SPLITS[self.scenes.split], index, 1])
        plan = self.scenes.plan(index)
        other = moved(plan, rng) if self.kind == "moved" else self.scenes.plan(self._kin[index])
        found = _between(plan, other, self.scenes.size, rng)
        if len(found.points):
            return found
        # smaller objects hide all that could be seen in both
        return _between(replace(plan, others=()), replace(other, others=()), self.scenes.size, rng)


def moved(plan: Plan, rng: np.random.Generator) -> Plan:
    """The same objects elsewhere before the same background, turned, larger or smaller."""

    def elsewhere(thing: Thing) -> Thing:
        size = thing.size * GROWTH ** rng.uniform(-1, 1)
        margin = min(0.42 * size, 0.5)
        return replace(
            thing,
            size=size,
            x=rng.uniform(margin, 1 - margin),
            y=rng.uniform(margin, 1 - margin),
            rotation=thing.rotation + rng.uniform(-TURN, TURN),
        )

    return replace(plan, main=elsewhere(plan.main), others=tuple(map(elsewhere, plan.others)))


def to_object(thing: Thing, points: Points, side: int) -> Points:
    """Points of an image in the coordinates of an object (see `visrep.data.shapes`), as rows and columns."""
    radius = thing.size / 2 * side
    dy, dx = ((points - side * np.array([thing.y, thing.x])) / radius).T
    cos, sin, wide = math.cos(thing.rotation), math.sin(thing.rotation), thing.stretch**0.5
    x, y = (cos * dx + sin * dy) / wide, (cos * dy - sin * dx) * wide
    return np.stack([y, -x if _turned(thing) else x], axis=1)


def to_image(thing: Thing, points: Points, side: int) -> Points:
    """The other way round."""
    radius = thing.size / 2 * side
    y, x = points.T
    cos, sin, wide = math.cos(thing.rotation), math.sin(thing.rotation), thing.stretch**0.5
    x, y = (-x if _turned(thing) else x) * wide, y / wide
    centre = side * np.array([thing.y, thing.x])
    return radius * np.stack([sin * x + cos * y, cos * x - sin * y], axis=1) + centre


def _turned(thing: Thing) -> bool:
    return thing.mirrored and thing.shape in LOPSIDED


def _between(plan: Plan, other: Plan, side: int, rng: np.random.Generator) -> PointPair:
    """Points at pixels of the main object, where it is seen, whose partners are seen too."""
    source, target = render(plan, side), render(other, side)
    points = np.argwhere(source.mask == source.main + 1) + 0.5
    points = points[rng.permutation(len(points))]
    partners = to_image(other.main, to_object(plan.main, points, side), side)
    object_there = target.mask == target.main + 1
    cells = np.floor(partners).astype(np.int64)
    inside = ((cells >= 0) & (cells < side)).all(1)
    rows, columns = cells.clip(0, side - 1).T
    seen = inside & object_there[rows, columns]
    box = [np.flatnonzero(object_there.any(axis)) for axis in (0, 1)]
    extent = max((int(each[-1] - each[0]) + 1 for each in box if len(each)), default=0)
    most = math.ceil(POINTS * seen.sum() / side**2)
    return PointPair(source.image, target.image, points[seen][:most], partners[seen][:most], float(extent))
