"""Moved, turned and scaled squares of images: windows over what is there, so that no border has to be invented.

The window at rest is the central square of 0.7 of the image's shorter side. Its diagonal fits into the image, so that
it can be turned by any angle; it can move by a fifth of itself, shrink, and grow to the whole shorter side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from visrep.method import Canvases, Preprocessing

WINDOW = 0.7
"""side of the window at rest as a share of the image's shorter side"""
FINER = 2
"""samples a pixel along each side, averaged: canvases have at most about twice the pixels of a view"""


@dataclass(frozen=True)
class Move:
    """Where the window lies."""

    right: float = 0.0
    """in sides of the window at rest"""
    down: float = 0.0
    degrees: float = 0.0
    """of the window, clockwise: what is seen turns the other way"""
    zoom: float = 1.0
    """2 shows half the length of each side, larger"""

    def __post_init__(self) -> None:
        turn = math.radians(self.degrees)
        reach = (abs(math.cos(turn)) + abs(math.sin(turn))) / self.zoom / 2
        farthest = max(abs(self.right), abs(self.down)) + reach
        if farthest > 0.5 / WINDOW + 1e-9:
            raise ValueError(
                f"{self} reaches {farthest * WINDOW:.2f} of the image's shorter side from its centre; 0.5 is the "
                "border. Move less or zoom in."
            )


def windows(canvases: Canvases, moves: list[Move], expects: Preprocessing) -> Float[Tensor, "b 3 h w"]:
    """The window of each image, moved by its move, at the encoder's size and normalised as it expects.

    Bilinear, antialiased by averaging.
    """
    side = FINER * expects.size
    at = (torch.arange(side, device=canvases.pixels.device) + 0.5) / side - 0.5
    y, x = torch.meshgrid(at, at, indexing="ij")  # in sides of the window, from its centre
    grids = []
    for (height, width), move in zip(canvases.sizes.tolist(), moves, strict=True):
        turn = math.radians(move.degrees)
        across = (x * math.cos(turn) - y * math.sin(turn)) / move.zoom + move.right
        down = (x * math.sin(turn) + y * math.cos(turn)) / move.zoom + move.down
        # grid_sample counts from -1 to 1 over the canvas, to which the whole image was squashed
        length = 2 * WINDOW * min(height, width)
        grids.append(torch.stack([across * length / width, down * length / height], dim=-1))
    fine = F.grid_sample(
        canvases.pixels.float() / 255, torch.stack(grids), padding_mode="border", align_corners=False
    )
    images = F.avg_pool2d(fine, FINER)
    mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (expects.mean, expects.std))
    return (images - mean) / std
