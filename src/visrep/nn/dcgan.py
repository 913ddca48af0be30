"""DCGAN's convolutions (arXiv:1511.06434) as Context Encoders use them (arXiv:1604.07379): one paints, one judges.

Each halves or doubles the resolution. None has a bias: the official code sets biases to zero before every step.
"""

from __future__ import annotations

from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn


def start(module: nn.Module) -> None:
    """Start a layer as DCGAN does; for `nn.Module.apply`."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, mean=1.0, std=0.02)


@final
class Painter(nn.Module):
    """A square grid of features to a picture in [-1, 1]: cells learn of each other, then become pixels.

    First a linear map over all cells, another one for each channel (the paper's channel-wise layer), then one over
    channels, then transposed convolutions, each of twice the resolution. ``width`` channels before the last of them,
    twice as many before each earlier one. Raises ValueError where doubling does not lead from ``grid`` to ``side``.
    """

    def __init__(self, n_in: int, *, grid: int, side: int, width: int) -> None:
        super().__init__()
        steps = (side // grid).bit_length() - 1
        if steps < 1 or side != grid * 2**steps:
            raise ValueError(
                f"{grid} x {grid} cells cannot be doubled until they are {side} x {side} pixels. Use an encoder whose "
                "stride is a power of 2, and 4 or more."
            )
        self.grid = grid
        self.mix = nn.Parameter(torch.randn(n_in, grid**2, grid**2) / grid)  # keeps the variance
        widths = [width * 2**i for i in reversed(range(steps))]
        self.embed = nn.Linear(n_in, widths[0], bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)]
        for before, after in pairwise(widths):
            doubled = nn.ConvTranspose2d(before, after, 4, 2, padding=1, bias=False)
            layers += [doubled, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        last = nn.ConvTranspose2d(width, 3, 4, 2, padding=1, bias=False)
        self.layers = nn.Sequential(*layers, last, nn.Tanh()).apply(start)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b 3 side side"]:
        x = self.embed(torch.einsum("bnd,dnm->bmd", x, self.mix))
        cells = x.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return self.layers(cells.contiguous(memory_format=torch.channels_last))


@final
class Discriminator(nn.Module):
    """Logits of pictures being real. The resolution is halved down to 4 pixels, or to an odd number of them.

    ``width`` channels at half the resolution, twice as many at each lower one.
    Raises ValueError for pictures that are too small or of an odd side.
    """

    def __init__(self, *, side: int, width: int) -> None:
        super().__init__()
        if side < 8 or side % 2:
            raise ValueError(
                f"Pictures of {side} x {side} pixels: the discriminator needs an even side of 8 or more."
            )
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, padding=1, bias=False), nn.LeakyReLU(0.2)]
        side //= 2
        while side > 4 and side % 2 == 0:
            halved = nn.Conv2d(width, 2 * width, 4, 2, padding=1, bias=False)
            layers += [halved, nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)]
            side, width = side // 2, 2 * width
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, side, bias=False)).apply(start)

    def forward(self, pictures: Float[Tensor, "b 3 side side"]) -> Float[Tensor, " b"]:
        return self.layers(pictures.contiguous(memory_format=torch.channels_last)).flatten()
