"""The convolutions of DALL-E's discrete VAE (arXiv:2102.12092): groups of residual blocks at ever fewer pixels."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn


def convolution(n_in: int, n_out: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the size, initialised as in the official code: one over the root of its inputs."""
    layer = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2)
    if kernel == 1:
        # The gradient of a 1x1 weight has channels-last strides: see visrep.encoders.resnet.
        layer.weight = nn.Parameter(torch.empty_like(layer.weight, memory_format=torch.channels_last))
    nn.init.normal_(layer.weight, std=1 / math.sqrt(n_in * kernel**2))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


@final
class ResidualBlock(nn.Module):
    """Four convolutions, a quarter as wide between the first and the last, added with a small ``gain``.

    Raises ValueError for a width that has no quarter.
    """

    def __init__(self, n_in: int, n_out: int, kernels: tuple[int, int, int, int], gain: float) -> None:
        super().__init__()
        if n_out % 4:
            raise ValueError(f"Blocks of {n_out} channels have no quarter. Use a width divisible by 4.")
        self.gain = gain
        self.shortcut = convolution(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        widths = pairwise((n_in, *(n_out // 4,) * 3, n_out))
        layers = ((nn.ReLU(), convolution(*w, kernel)) for w, kernel in zip(widths, kernels, strict=True))
        self.branch = nn.Sequential(*(module for pair in layers for module in pair))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return self.shortcut(x) + self.gain * self.branch(x)


def group(
    n_in: int, n_out: int, n_blocks: int, kernels: tuple[int, int, int, int], gain: float
) -> nn.Sequential:
    """Blocks of one resolution, the first of which changes the number of channels."""
    return nn.Sequential(
        *(ResidualBlock(n_out if i else n_in, n_out, kernels, gain) for i in range(n_blocks))
    )


@final
class PixelDecoder(nn.Module):
    """A grid of vectors to an image, each group of blocks at twice the resolution of the one before.

    ``width`` channels at full resolution, twice as many at each of the ``groups`` - 1 lower ones, as in the encoder.
    """

    def __init__(self, n_in: int, n_out: int, *, width: int, groups: int, blocks: int) -> None:
        super().__init__()
        first, gain = 128, (groups * blocks) ** -2
        self.embed = convolution(n_in, first, 1)
        widths = pairwise((first, *(width * 2**i for i in reversed(range(groups)))))
        self.groups = nn.ModuleList(group(*w, blocks, (1, 3, 3, 3), gain) for w in widths)
        self.predict = convolution(width, n_out, 1)

    def forward(self, x: Float[Tensor, "b n d"], grid: tuple[int, ...]) -> Float[Tensor, "b c h w"]:
        """``x`` lists the cells of the grid row by row."""
        x = self.embed(x.transpose(1, 2).unflatten(2, grid).contiguous(memory_format=torch.channels_last))
        for i, blocks in enumerate(self.groups):
            x = blocks(x if i == 0 else nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.predict(x.relu())
