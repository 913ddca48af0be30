"""Two convolutional encoders side by side, one of an image's lightness, one of its colours (arXiv:1611.09842)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from visrep.encoders.checks import check_images, check_whole
from visrep.encoders.convnet import ConvNet
from visrep.encoders.resnet import ResNet
from visrep.functional import displayed
from visrep.method import Encoder, Tokens
from visrep.nn.lab import rgb_to_lab


@dataclass(frozen=True)
class LabSplit:
    """Two networks of one kind: the first sees L of Lab, the second a and b. Each makes half of every token."""

    stream: ResNet | ConvNet
    """each of the two, but for its ``channels``"""

    def build(self) -> SplitEncoder:
        """A network with fresh weights, drawn from torch's global generator."""
        return SplitEncoder(self)


@final
class SplitEncoder(Encoder):
    """See `LabSplit`. Layers are those of the streams, side by side."""

    def __init__(self, config: LabSplit) -> None:
        super().__init__()
        self.config: LabSplit = config
        self.lightness: Encoder = replace(config.stream, channels=1).build()
        self.colours: Encoder = replace(config.stream, channels=2).build()
        self.width, self.depth = 2 * self.lightness.width, self.lightness.depth
        self.stride, self.preprocessing = self.lightness.stride, self.lightness.preprocessing

    def lab(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Lab of images that are normalised as `preprocessing` says."""
        return rgb_to_lab(displayed(images, self.preprocessing.mean, self.preprocessing.std))

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        *,
        keep: Int[Tensor, "b m"] | None = None,
        mask: Bool[Tensor, "b n"] | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
    ) -> Tokens:
        """Encode images; see `Encoder.forward`. Raises ValueError for keep, mask and attention."""
        check_whole("LabSplit", keep, mask, attention)
        check_images(images, 3)
        lab = self.lab(images)
        lightness = self.lightness(lab[:, :1] / 50 - 1, layers=layers)
        colours = self.colours(lab[:, 1:] / 50, layers=layers)
        return replace(
            _joined(lightness, colours), layers=tuple(map(_joined, lightness.layers, colours.layers))
        )


def _joined(first: Tokens, second: Tokens) -> Tokens:
    """The tokens of both, side by side."""
    return Tokens(torch.cat([first.patches, second.patches], dim=-1), first.grid)
