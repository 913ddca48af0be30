"""A plain stack of convolutions: nothing learns faster in the first minutes on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from visrep.encoders.checks import check_images, check_layers, check_whole
from visrep.method import Encoder, Preprocessing, Tokens


@dataclass(frozen=True)
class ConvNet:
    """Seven 3x3 convolutions with BatchNorm and ReLU at four resolutions, no shortcuts.

    For trials on small images. In a run of some hundred steps it learns shapes sooner than a ResNet of the same
    width, whose depth pays only later.
    """

    width: int = 16
    """channels at full resolution, doubled at each of the three others"""
    channels: int = 3
    """of the images"""

    def build(self) -> ConvolutionalNetwork:
        """A network with fresh weights, drawn from torch's global generator."""
        return ConvolutionalNetwork(self)


def unit(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    convolution = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


@final
class ConvolutionalNetwork(Encoder):
    """See `ConvNet`. Layers 1 to 4 are the resolutions; patches are the cells of their last map."""

    def __init__(self, config: ConvNet) -> None:
        super().__init__()
        w = config.width
        self.config: ConvNet = config
        self.width, self.depth, self.stride = 8 * w, 4, 8
        self.preprocessing = Preprocessing(32, ratio=1.0)
        self.stages = nn.ModuleList(
            [
                nn.Sequential(unit(config.channels, w, 1), unit(w, w, 1)),
                nn.Sequential(unit(w, 2 * w, 2), unit(2 * w, 2 * w, 1)),
                nn.Sequential(unit(2 * w, 4 * w, 2), unit(4 * w, 4 * w, 1)),
                unit(4 * w, 8 * w, 2),
            ]
        )

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
        check_whole("ConvNet", keep, mask, attention)
        check_images(images, self.config.channels)
        check_layers(layers, self.depth)
        x = images.contiguous(memory_format=torch.channels_last)
        stages: list[Tokens] = []
        for stage in self.stages:
            x = stage(x)
            stages.append(Tokens(patches=x.flatten(2).transpose(1, 2), grid=(x.shape[2], x.shape[3])))
        last = stages[-1]
        return Tokens(last.patches, last.grid, layers=tuple(stages[layer - 1] for layer in layers))
