"""The playgrounds with exact masks of shapes and objects and exact depth; frames of the one that moves."""

from __future__ import annotations

from typing import Literal, final

import numpy as np
from jaxtyping import UInt8

from visrep.data.dense import Answers, DenseSource, Kind
from visrep.data.playground import Playground
from visrep.data.playground_video import PlaygroundVideo
from visrep.data.scene import Plan, Scene, film, render
from visrep.data.shapes import SHAPES

NAMES = ("background", *SHAPES)
"""of classes: 1 is the first shape"""


@final
class DensePlayground(Playground, DenseSource):
    """The playground: masks hold shapes, instances tell objects apart (1 is the nearest), depth lies in (0, 1]."""

    names = NAMES
    knows: frozenset[Kind] = frozenset({"classes", "instances", "depth"})

    def answers(self, index: int, shape: tuple[int, int] | None = None) -> Answers:
        return _resized(_answers(self.scene(index)), shape)


@final
class PlaygroundFrames(DenseSource):
    """The frames of a playground-video one by one, clip after clip; an object has one number in all frames."""

    names = NAMES
    knows: frozenset[Kind] = frozenset({"classes", "instances", "depth", "video"})

    def __init__(
        self,
        n: int = 20,
        size: int = 64,
        frames: int = 16,
        seed: int = 0,
        split: Literal["train", "test"] = "train",
        backdrops: int = 0,
    ) -> None:
        """``n`` clips of so many ``frames``. Raises what `PlaygroundVideo` raises."""
        self.clips = PlaygroundVideo(n, size, frames, seed, split, backdrops)
        self.name = self.clips.name
        self.labels = self.classes = None
        self.groups = np.repeat(np.arange(n), frames)

    def __len__(self) -> int:
        return len(self.clips) * self.clips.frames

    def read(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return film([self.plan(index)], self.clips.size)[0]

    def key(self, index: int) -> str:
        clip, frame = divmod(index, self.clips.frames)
        return f"{self.clips.key(clip)}/{frame:03d}"

    def answers(self, index: int, shape: tuple[int, int] | None = None) -> Answers:
        return _resized(_answers(render(self.plan(index), self.clips.size)), shape)

    def plan(self, index: int) -> Plan:
        """What is in one frame. Raises IndexError beyond the last."""
        clip, frame = divmod(index, self.clips.frames)
        return self.clips.plans(clip)[frame]


def _answers(scene: Scene) -> Answers:
    shape_of = np.array([0, *(1 + label for label in scene.classes)], dtype=np.int64)
    instances = scene.mask.astype(np.int64)
    return Answers(shape_of[instances], instances, scene.depth)


def _resized(answers: Answers, shape: tuple[int, int] | None) -> Answers:
    return answers if shape is None else answers.resized(shape)
