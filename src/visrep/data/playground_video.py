"""The playground as video: two objects before a still background, and one of eight motions, which is the label.

The motions are four pairs, each the other one backwards: both objects move left or right, turn left or right,
shrink or grow, or pass each other, the nearer one going left or right. What does not move in a clip stands still
somewhere along the way that it takes in other clips. So one frame, of a moment unknown, says nothing about the label,
and all frames without their order say which pair it is and not which of the two: at most half of the guesses are right.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Float64

from visrep.data.decode import Raw
from visrep.data.playground import SPLITS, draw_backdrop, draw_thing
from visrep.data.scene import Plan, Thing, film
from visrep.data.source import Source

MOTIONS = (
    "move left",
    "move right",
    "turn left",
    "turn right",
    "shrink",
    "grow",
    "pass left",
    "pass right",
)
"""names of the labels: a motion and, behind it, the same the other way round"""
SHAPES = ("square", "triangle", "star", "flower", "cross", "crescent", "heart", "arrow")
"""those of the playground that are not round, so that all of them can be seen to turn"""
SHIFT, TURN, GROWTH, PASS = 0.4, 2.0, 2.2, 0.8
"""from the first frame to the last: shares of the side, radians, a factor, and the change of the distance in shares"""


class PlaygroundVideo(Source):
    """A `Source` of drawn clips; clip i depends on (seed, split, i) only, so a smaller n is a prefix.

    Labels are balanced: each eight clips in a row hold each motion once. More frames show the same motion more finely.
    Every clip has a background of its own, or one of so many ``backdrops``, the same ones in both splits: with 1 all
    clips happen in one place, as a game's do. Raises ValueError for n < 1, size < 8, frames < 2, a negative seed or
    number of backdrops or an unknown split.
    """

    def __init__(
        self,
        n: int = 10_000,
        size: int = 48,
        frames: int = 8,
        seed: int = 0,
        split: Literal["train", "test"] = "train",
        backdrops: int = 0,
    ) -> None:
        if n < 1 or size < 8 or frames < 2 or seed < 0 or backdrops < 0:
            raise ValueError(
                f"playground-video with n={n}, size={size}, frames={frames}, seed={seed}, backdrops={backdrops}: n "
                "must be at least 1, size at least 8 pixels, frames at least 2, seed and backdrops not negative."
            )
        if split not in SPLITS:
            raise ValueError(f"playground-video has no split={split!r}. Use split=train or split=test.")
        self.name = "playground-video"
        self.n, self.size, self.frames, self.seed, self.split = n, size, frames, seed, split
        self.backdrops = backdrops
        self.classes = MOTIONS
        rng = np.random.default_rng([seed, SPLITS[split], len(MOTIONS)])
        blocks = math.ceil(n / len(MOTIONS))
        self._labels = rng.random((blocks, len(MOTIONS))).argsort(axis=1).reshape(-1)[:n].astype(np.int64)
        self.labels = self._labels

    def __len__(self) -> int:
        return self.n

    def read(self, index: int) -> list[Raw]:
        return list(film(self.plans(index), self.size))

    def key(self, index: int) -> str:
        return f"{self.split}-{self.seed}-{index:06d}"

    def plans(self, index: int, label: int | None = None) -> list[Plan]:
        """What is in each frame of clip ``index``, or would be with another ``label``.

        Raises IndexError beyond the last.
        """
        if not 0 <= index < self.n:
            raise IndexError(f"clip {index} of a playground-video of {self.n}")
        label = int(self._labels[index]) if label is None else label
        rng = np.random.default_rng([self.seed, SPLITS[self.split], len(MOTIONS), index])
        backdrop = draw_backdrop(rng)
        if self.backdrops:
            backdrop = draw_backdrop(np.random.default_rng([self.seed, len(SPLITS), index % self.backdrops]))
        light = rng.uniform(-math.pi, 0.0)
        x, y = rng.uniform(0.45, 0.55), rng.uniform(0.42, 0.58)
        apart = rng.uniform(-0.08, 0.08)
        things: list[Thing] = []
        for depth, down in ((0.3, apart), (0.6, -apart)):
            shape = SHAPES[int(rng.integers(len(SHAPES)))]
            thing = draw_thing(rng, shape, rng.uniform(0.3, 0.42), (x, y + down), backdrop)
            things.append(replace(thing, rotation=rng.uniform(0.0, math.tau), depth=depth))
        near, far = things
        return [
            Plan(_moved(near, *phases, side=0.5), (_moved(far, *phases, side=-0.5),), backdrop, light)
            for phases in self._phases(rng, label).tolist()
        ]

    def _phases(self, rng: np.random.Generator, label: int) -> Float64[np.ndarray, "t 4"]:
        """How far each of the four motions has come in each frame, from -1/2 to 1/2: one runs, three stand still."""
        moments = (np.arange(self.frames) + 0.5) / self.frames - 0.5
        pace = rng.uniform(0.7, 1.0, 4)
        phases = np.tile(rng.choice(moments, 4), (self.frames, 1))
        motion, forwards = divmod(label, 2)
        phases[:, motion] = moments if forwards else moments[::-1]
        return pace * phases


def _moved(thing: Thing, shift: float, turn: float, growth: float, passing: float, *, side: float) -> Thing:
    """An object after parts of the motions; ``side`` is its share of the distance when two pass each other."""
    return replace(
        thing,
        x=thing.x + SHIFT * shift + PASS * passing * side,
        rotation=thing.rotation + TURN * turn,
        size=thing.size * GROWTH**growth,
    )
