"""Histograms of oriented gradients (Dalal & Triggs 2005) as targets, of images and of frames of video alike.

As in the official MaskFeat code (arXiv:2112.09133): each channel for itself, a pixel's gradient votes with its length
for the bin of its direction, cells sum votes, each cell's histogram is divided by its length. No blocks, no
interpolation between bins or cells.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from visrep.functional import patchify


def sobel(images: Float[Tensor, "*any h w"]) -> tuple[Float[Tensor, "*any h w"], Float[Tensor, "*any h w"]]:
    """Differences across and down of each channel, each smoothed along the other axis; mirrored at the border."""
    x = F.pad(images.flatten(0, -3), (1, 1, 1, 1), mode="reflect")
    over_rows = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]
    over_columns = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]
    across, down = over_rows[:, :, :-2] - over_rows[:, :, 2:], over_columns[:, :-2] - over_columns[:, 2:]
    return across.view_as(images), down.view_as(images)


def orientation_histograms(
    across: Float[Tensor, "*any h w"], down: Float[Tensor, "*any h w"], cell: int, bins: int
) -> Float[Tensor, "*any k rows columns"]:
    """Votes for k directions in cells of ``cell`` x ``cell`` pixels; pixels that fill no cell do not count.

    Directions are angles from the vertical, in steps of 180 / k degrees: opposite gradients are alike.
    """
    direction = (torch.atan2(across, down) / math.pi * bins).floor().long() % bins
    length = torch.hypot(across, down)
    votes = length.new_zeros(*length.shape[:-2], bins, *length.shape[-2:])
    votes.scatter_(-3, direction.unsqueeze(-3), length.unsqueeze(-3))
    return votes.unfold(-2, cell, cell).unfold(-2, cell, cell).sum((-2, -1))


@torch.no_grad()
def hog(images: Float[Tensor, "*any h w"], cell: int, bins: int = 9) -> Float[Tensor, "*any k rows columns"]:
    """The histograms of each channel, cell by cell, each at length 1; zeros where nothing changes."""
    return F.normalize(orientation_histograms(*sobel(images), cell, bins), dim=-3)


def hog_patches(
    images: Float[Tensor, "b *any c h w"], patch: int, cell: int, bins: int = 9
) -> Float[Tensor, "b *any n q"]:
    """The histograms of the cells in each patch: flattened as (row, column, channel, bin), patches row by row.

    Raises ValueError when a patch does not divide into cells, or an image into patches.
    """
    if patch % cell:
        raise ValueError(
            f"Patches of {patch} pixels do not divide into cells of {cell} pixels. Use a cell that divides {patch}."
        )
    h, w = images.shape[-2:]
    if h % patch or w % patch:
        raise ValueError(f"Images of {h}x{w} pixels do not divide into patches of {patch}x{patch} pixels.")
    cells = hog(images, cell, bins).flatten(-4, -3)  # ... (c k) rows columns
    return patchify(cells.flatten(0, -4), patch // cell).unflatten(0, images.shape[:-3])


def draw_hog(histograms: Float[Tensor, "*any k rows columns"], side: int) -> Float[Tensor, "*any h w"]:
    """A picture of histograms: in each cell, ``side`` pixels wide, a stroke along the edges of each direction."""
    k = histograms.shape[-3]
    angle = (torch.arange(k, device=histograms.device) + 0.5) * (math.pi / k)
    place = torch.arange(side, device=histograms.device) - (side - 1) / 2
    # Edges run across the gradient (sin angle, cos angle), so these are distances from a line through the middle.
    distance = angle.sin()[:, None, None] * place + angle.cos()[:, None, None] * place[:, None]  # k side side
    inside = place.square() + place[:, None].square() < (side / 2) ** 2
    strokes = (1 - distance.abs()).clamp(min=0) * inside
    drawn = torch.einsum("...krc,kyx->...rycx", histograms, strokes.to(histograms))
    return drawn.flatten(-2).flatten(-3, -2).clamp(0, 1)
