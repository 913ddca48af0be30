"""The playground: a built-in world of colour images, drawn on demand, with everything about them known.

Each image shows one main object, whose shape is its label, and up to two smaller ones over a varied
background. Colour, texture, size, place, rotation, light and background are drawn independently of the
shape, so nothing but the shape tells the label.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from visrep.data.scene import Plan, Scene, Thing, draw, render
from visrep.data.shapes import SHAPES
from visrep.data.source import Source
from visrep.data.surfaces import BACKDROPS, PATTERNS, WAVES, Backdrop, Colour, falling, rgb

_SHAPES, _PATTERNS, _BACKDROPS = tuple(SHAPES), tuple(PATTERNS), tuple(BACKDROPS)
SPLITS = {"train": 0, "test": 1}

# The three numbers below set how hard the shape is to find among everything else that varies.
_OTHERS = (0.6, 0.28, 0.12)
"""chances of no, one and two smaller objects"""
_TILT = 0.2
"""largest rotation in radians, 11 degrees: things stand upright, as they mostly do in photographs"""
_CONTRAST = 0.15
"""largest difference between a background's colours, in each channel"""


class Playground(Source):
    """A `Source` of drawn scenes; image i depends on (seed, split, i) only, so a smaller n is a prefix.

    Labels are balanced: each ten images in a row hold each class once.
    Raises ValueError for n < 1, size < 8, a negative seed or an unknown split.
    """

    def __init__(
        self, n: int = 10_000, size: int = 64, seed: int = 0, split: Literal["train", "test"] = "train"
    ) -> None:
        if n < 1 or size < 8 or seed < 0:
            raise ValueError(
                f"playground with n={n}, size={size}, seed={seed}: n must be at least 1, size at least 8 "
                f"pixels and seed not negative. The default is n=10000, size=64, seed=0."
            )
        if split not in SPLITS:
            raise ValueError(f"playground has no split={split!r}. Use split=train or split=test.")
        self.name = "playground"
        self.n, self.size, self.seed, self.split = n, size, seed, split
        self.classes = _SHAPES
        rng = np.random.default_rng([seed, SPLITS[split]])
        blocks = math.ceil(n / len(_SHAPES))
        self._labels = rng.random((blocks, len(_SHAPES))).argsort(axis=1).reshape(-1)[:n].astype(np.int64)
        self.labels = self._labels

    def __len__(self) -> int:
        return self.n

    def read(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return draw(self.plan(index), self.size)

    def key(self, index: int) -> str:
        return f"{self.split}-{self.seed}-{index:06d}"

    def scene(self, index: int) -> Scene:
        """The image with its mask, depth, objects, factors and caption."""
        return render(self.plan(index), self.size)

    def plan(self, index: int) -> Plan:
        """What is in image ``index``, at no particular resolution. Raises IndexError beyond the last."""
        if not 0 <= index < self.n:
            raise IndexError(f"image {index} of a playground of {self.n}")
        rng = np.random.default_rng([self.seed, SPLITS[self.split], index])
        backdrop = draw_backdrop(rng)
        light = rng.uniform(-math.pi, 0.0)  # from above
        size = rng.uniform(0.42, 0.75)
        slack = 0.5 - 0.42 * size  # up to a twelfth of it may lie outside
        place = rng.uniform(0.5 - slack, 0.5 + slack), rng.uniform(0.5 - slack, 0.5 + slack)
        main = draw_thing(rng, _SHAPES[self._labels[index]], size, place, backdrop)
        others: list[Thing] = []
        for _ in range(int(rng.choice(3, p=_OTHERS))):
            size = rng.uniform(0.13, 0.24)
            free = _free_place(rng, size, [main, *others])
            if free is not None:
                others.append(draw_thing(rng, _pick(rng, _SHAPES), size, free, backdrop))
        return Plan(main, tuple(others), backdrop, light)


def _pick(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def draw_backdrop(rng: np.random.Generator) -> Backdrop:
    """Any colour, but of moderate contrast within itself, so that objects stand out."""
    base = rgb(rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.15, 0.9))
    waves = rng.standard_normal((3, WAVES, WAVES), dtype=np.float32)
    waves *= falling(rng.uniform(1.1, 1.9))
    spots = rng.random((24, 5), dtype=np.float32)
    spots[:, 2:4] = 0.03 + 0.1 * spots[:, 2:4]
    return Backdrop(
        kind=_pick(rng, _BACKDROPS),
        palette=(base, _near(rng, base), _near(rng, base)),
        angle=rng.uniform(0.0, math.tau),
        waves=waves,
        spots=spots,
    )


def _near(rng: np.random.Generator, colour: Colour) -> Colour:
    red, green, blue = np.clip(np.add(colour, rng.uniform(-_CONTRAST, _CONTRAST, 3)), 0.0, 1.0).tolist()
    return red, green, blue


def draw_thing(
    rng: np.random.Generator, shape: str, size: float, place: tuple[float, float], backdrop: Backdrop
) -> Thing:
    hue, colour = _stand_out(rng, backdrop)
    return Thing(
        shape=shape,
        texture=_pick(rng, _PATTERNS),
        hue=hue,
        colour=colour,
        accent=_accent(rng, colour),
        x=place[0],
        y=place[1],
        size=size,
        mirrored=bool(rng.random() < 0.5),
        rotation=rng.uniform(-_TILT, _TILT),
        stretch=math.exp(rng.uniform(-0.18, 0.18)),
        grain=rng.uniform(3.0, 6.0),
        weave=rng.uniform(0.0, math.pi),
        depth=rng.uniform(0.1, 0.9),
    )


def _stand_out(rng: np.random.Generator, backdrop: Backdrop) -> tuple[float, Colour]:
    """A hue and colour unlike the background's: the most different of four."""
    drawn = [(rng.random(), rng.uniform(0.5, 1.0), rng.uniform(0.55, 1.0)) for _ in range(4)]
    colours = [(hue, rgb(hue, saturation, value)) for hue, saturation, value in drawn]
    return max(colours, key=lambda c: min(math.dist(c[1], other) for other in backdrop.palette))


def _accent(rng: np.random.Generator, colour: Colour) -> Colour:
    """The same colour in the shade or whitened."""
    if rng.random() < 0.5:
        white, keep = 0.0, rng.uniform(0.5, 0.72)
    else:
        white = rng.uniform(0.35, 0.6)
        keep = 1 - white
    red, green, blue = (keep * level + white for level in colour)
    return red, green, blue


def _free_place(rng: np.random.Generator, size: float, taken: list[Thing]) -> tuple[float, float] | None:
    """A place for a smaller object where nothing hides much of anything else; None when none is found."""
    for _ in range(12):
        x, y = rng.uniform(0.08, 0.92), rng.uniform(0.08, 0.92)
        if all(math.hypot(x - t.x, y - t.y) > 0.45 * t.size + 0.2 * size for t in taken):
            return x, y
    return None
