"""ResNet (arXiv:1512.03385) as torchvision has it, without the classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from visrep.encoders.checks import check_choice, check_images, check_layers, check_whole
from visrep.method import Encoder, Preprocessing, Tokens

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
Stem = Literal["imagenet", "small"]


@dataclass(frozen=True)
class ResNet:
    """A residual network. Width 64 with the ImageNet stem is torchvision's."""

    depth: Literal[18, 34, 50] = 18
    width: int = 64
    """channels of the first stage, doubled at each of the three others"""
    stem: Stem = "imagenet"
    """imagenet: 7x7 of stride 2 and max pooling; small: 3x3 of stride 1, for images of about 32 pixels"""
    zero_init_residual: bool = True
    """start each residual branch at zero (arXiv:1706.02677)"""
    channels: int = 3
    """of the images"""

    def __post_init__(self) -> None:
        check_choice("depth", self.depth, tuple(BLOCKS))
        check_choice("stem", self.stem, get_args(Stem))

    def build(self) -> ResidualNetwork:
        """A network with fresh weights, drawn from torch's global generator."""
        return ResidualNetwork(self)


def convolution(n_in: int, n_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that pads to keep the size, initialised as in torchvision."""
    layer = nn.Conv2d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=False)
    if kernel == 1:
        # The gradient of a 1x1 weight has channels-last strides. The memory is the same, but distributed
        # training compares strides and would warn.
        layer.weight = nn.Parameter(torch.empty_like(layer.weight, memory_format=torch.channels_last))
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def shortcut(n_in: int, n_out: int, stride: int) -> nn.Module:
    """The identity, or a 1x1 convolution where the shape changes."""
    if stride == 1 and n_in == n_out:
        return nn.Identity()
    return nn.Sequential(convolution(n_in, n_out, 1, stride), nn.BatchNorm2d(n_out))


@final
class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, n_in: int, n: int, stride: int, *, zero_init: bool) -> None:
        super().__init__()
        self.conv1 = convolution(n_in, n, 3, stride)
        self.bn1 = nn.BatchNorm2d(n)
        self.conv2 = convolution(n, n, 3)
        self.bn2 = nn.BatchNorm2d(n)
        self.downsample = shortcut(n_in, n, stride)
        if zero_init:
            nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d rows columns"]:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y.add_(self.downsample(x)), inplace=True)


@final
class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, n_in: int, n: int, stride: int, *, zero_init: bool) -> None:
        super().__init__()
        self.conv1 = convolution(n_in, n, 1)
        self.bn1 = nn.BatchNorm2d(n)
        self.conv2 = convolution(n, n, 3, stride)
        self.bn2 = nn.BatchNorm2d(n)
        self.conv3 = convolution(n, 4 * n, 1)
        self.bn3 = nn.BatchNorm2d(4 * n)
        self.downsample = shortcut(n_in, 4 * n, stride)
        if zero_init:
            nn.init.zeros_(self.bn3.weight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d rows columns"]:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y.add_(self.downsample(x)), inplace=True)


@final
class ResidualNetwork(Encoder):
    """See `ResNet`. Layers 1 to 4 are the stages; patches are the cells of their last map.

    The maps are channels-last: 1.2 (AVX2) to 1.6 times (AVX-512) faster on CPUs for narrow networks, and what
    CUDA prefers in 16 bits. The weights need no such layout: convolutions follow their input.
    """

    def __init__(self, config: ResNet) -> None:
        super().__init__()
        kind = Bottleneck if config.depth == 50 else BasicBlock
        small = config.stem == "small"
        self.config: ResNet = config
        self.width, self.depth, self.stride = 8 * config.width * kind.expansion, 4, 8 if small else 32
        self.preprocessing = Preprocessing(32, ratio=1.0) if small else Preprocessing(224, ratio=0.875)

        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = convolution(config.channels, config.width, kernel, stride)
        self.bn1 = nn.BatchNorm2d(config.width)
        self.pool = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)

        def stage(n_in: int, n: int, n_blocks: int, stride: int) -> nn.Sequential:
            first = kind(n_in, n, stride, zero_init=config.zero_init_residual)
            rest = (
                kind(n * kind.expansion, n, 1, zero_init=config.zero_init_residual)
                for _ in range(n_blocks - 1)
            )
            return nn.Sequential(first, *rest)

        w, e, counts = config.width, kind.expansion, BLOCKS[config.depth]
        self.layer1 = stage(w, w, counts[0], 1)
        self.layer2 = stage(w * e, 2 * w, counts[1], 2)
        self.layer3 = stage(2 * w * e, 4 * w, counts[2], 2)
        self.layer4 = stage(4 * w * e, 8 * w, counts[3], 2)

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        *,
        keep: Int[Tensor, "b m"] | None = None,
        mask: Bool[Tensor, "b n"] | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
    ) -> Tokens:
        """Encode images; see `Encoder.forward`.

        Raises ValueError for keep, mask and attention, which a convolutional network does not have, and for
        layers that do not exist.
        """
        check_whole("ResNet", keep, mask, attention)
        check_images(images, self.config.channels)
        check_layers(layers, self.depth)
        x = images.contiguous(memory_format=torch.channels_last)
        x = self.pool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        stages: list[Tokens] = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            grid = (x.shape[2], x.shape[3])
            stages.append(Tokens(patches=x.flatten(2).transpose(1, 2), grid=grid))
        last = stages[-1]
        return Tokens(last.patches, last.grid, layers=tuple(stages[layer - 1] for layer in layers))
