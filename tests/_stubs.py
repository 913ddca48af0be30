"""An encoder without weights for tests: what it makes of an image can be written down, so the right answer is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from visrep.method import Encoder, Preprocessing, Tokens

Look = Callable[[Tensor], Tokens]
"""what one layer makes of images"""


class Stub(Encoder):
    """One function of the pixels a layer, over images of ``size`` pixels."""

    def __init__(self, size: int, *looks: Look, width: int, stride: int) -> None:
        super().__init__()
        self.looks, self.depth, self.config = looks, len(looks), None
        self.width, self.stride = width, stride
        self.preprocessing = Preprocessing(size, ratio=1.0)

    def forward(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
    ) -> Tokens:
        asked = tuple(self.looks[layer - 1](images) for layer in layers)
        return replace(self.looks[-1](images), layers=asked)


def mean_colour(repeats: int) -> Look:
    """The mean colour of the image, so many times in one token."""

    def look(images: Tensor) -> Tokens:
        return Tokens(images.mean((2, 3)).repeat(1, repeats)[:, None], (1, 1))

    return look


def grid_colours(side: int) -> Look:
    """The mean colours of ``side`` x ``side`` parts of the image, beside each other in one token."""

    def look(images: Tensor) -> Tokens:
        return Tokens(F.adaptive_avg_pool2d(images, side).flatten(1)[:, None], (1, 1))

    return look


def patch_colours(stride: int) -> Look:
    """The mean colour of each patch of ``stride`` pixels, a token a patch."""

    def look(images: Tensor) -> Tokens:
        cells = F.avg_pool2d(images, stride)
        return Tokens(cells.flatten(2).transpose(1, 2), (cells.shape[2], cells.shape[3]))

    return look
