"""What a dense protocol is given: patch tokens and answers of images, the network, and where to compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from visrep.data.canvas import CanvasSet
from visrep.data.dense import DenseSource
from visrep.evaluation.dense.patches import BATCH, Patches
from visrep.evaluation.features import centred
from visrep.evaluation.results import Inapplicable, Setting
from visrep.method import Encoder


@dataclass
class Key:
    """The answers of all images of a source, squashed to canvases of one size and read when first asked for."""

    source: DenseSource
    size: int

    @cached_property
    def _read(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        shape = (self.size, self.size)
        found = [self.source.answers(index, shape).all for index in range(len(self.source))]
        kinds = (np.uint8, np.int64, np.float32)
        return tuple(  # pyright: ignore[reportReturnType] - three kinds of answers, three tensors
            None if rows[0] is None else torch.from_numpy(np.stack(rows).astype(kind))
            for rows, kind in zip(zip(*found, strict=True), kinds, strict=True)
        )

    @property
    def classes(self) -> UInt8[Tensor, "n s s"]:
        """Numbers of classes, 255 where nobody is asked."""
        return self._known(self._read[0], "masks of classes")

    @property
    def instances(self) -> Int64[Tensor, "n s s"]:
        """Numbers of objects, 0 where there is none."""
        return self._known(self._read[1], "masks of objects")

    @property
    def depth(self) -> Float32[Tensor, "n s s"]:
        """Positive, greater is further away."""
        return self._known(self._read[2], "depth")

    def _known(self, answers: Tensor | None, what: str) -> Tensor:
        if answers is None:
            raise Inapplicable(f"{self.source.name} has no {what}.")
        return answers


@dataclass(frozen=True)
class DenseSide:
    """Images to fit on, or to judge: row i of everything is the same image."""

    key: Key
    canvases: CanvasSet
    patches: Patches
    """of one layer; of raw pixels where there is no network"""

    def __len__(self) -> int:
        return len(self.patches.index)

    @property
    def source(self) -> DenseSource:
        return self.key.source

    @property
    def names(self) -> tuple[str, ...]:
        """Of classes."""
        return self.source.names

    @property
    def size(self) -> int:
        """Of answers in pixels: squares."""
        return self.key.size

    @property
    def index(self) -> Int64[Tensor, " n"]:
        """Position of each image in the source."""
        return self.patches.index

    @property
    def tokens(self) -> Float[Tensor, "n h w d"]:
        return self.patches.tokens

    @property
    def classes(self) -> UInt8[Tensor, "n s s"]:
        return self.key.classes[self.index]

    @property
    def instances(self) -> Int64[Tensor, "n s s"]:
        return self.key.instances[self.index]

    @property
    def depth(self) -> Float32[Tensor, "n s s"]:
        return self.key.depth[self.index]

    @property
    def groups(self) -> Int64[np.ndarray, " n"]:
        """The video of each frame, in order; without videos each image is a group of its own."""
        groups = self.source.groups
        return self.index.numpy() if groups is None else groups[self.index.numpy()]

    def at(self, rows: Int64[Tensor, " m"]) -> DenseSide:
        """Some of the images."""
        return replace(self, patches=Patches(self.patches.tokens[rows], self.index[rows]))


@dataclass(frozen=True)
class Exam:
    """One encoder before one dense protocol."""

    train: DenseSide
    """without images for a protocol that fits nothing"""
    test: DenseSide
    network: Encoder | None
    """in evaluation mode, on ``device``; None for a protocol that reads tokens"""
    layer: int
    """of the tokens; 0 for pixels"""
    image: int
    """side in pixels of the squares that the network sees"""
    device: torch.device
    seed: int
    progress: bool = False
    asked: int = 0
    """what was asked for as the side in pixels; 0 for nothing, which protocols with a size of their own heed"""
    crossed: bool = False
    """whether both sides hold the same videos, each of which is judged by what was fitted on the others"""

    def folds(self) -> list[Exam]:
        """For protocols that fit: this exam, or one a video, which is judged, where they are `crossed`."""
        if not self.crossed:
            return [self]
        return [
            replace(
                self,
                train=self.train.at(torch.from_numpy(np.flatnonzero(self.train.groups != video))),
                test=self.test.at(torch.from_numpy(np.flatnonzero(self.test.groups == video))),
                crossed=False,
            )
            for video in np.unique(self.test.groups)
        ]

    def pixels(self, side: DenseSide, batch: int = BATCH) -> Iterator[Float[Tensor, "b 3 y x"]]:
        """The images of a side in order, as the network wants them, on the device: for those that read the network."""
        assert self.network is not None
        how = replace(self.network.preprocessing, size=self.image, ratio=1.0)
        for pixels, _, _ in centred(side.canvases, side.index.numpy(), how, batch, self.device, whole=True):
            yield pixels


@dataclass(frozen=True)
class Folds:
    """What results of a fitted protocol say of how they were made."""

    n_train: int
    """images fitted on, the fewest of a fold"""
    groups: Int64[np.ndarray, " n"]
    """the video of each image that was judged, fold by fold"""
    settings: dict[str, Setting]

    @staticmethod
    def of(exams: list[Exam], rates: Sequence[float]) -> Folds:
        """``rates``: the learning rate of each fold; none where nothing is trained."""
        settings: dict[str, Setting] = {}
        if rates:
            one = len(set(rates)) == 1
            settings["lr"] = rates[0] if one else ", ".join(f"{rate:g}" for rate in rates)
        if len(exams) > 1:
            settings["folds"] = len(exams)
        groups = np.concatenate([exam.test.groups for exam in exams])
        return Folds(min(len(exam.train) for exam in exams), groups, settings)
