"""Patch tokens on their grid, of any layer: whole images, squashed to a square, in one pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float16, Int64
from torch import Tensor

from visrep.data.canvas import CanvasSet
from visrep.evaluation.features import centred, evaluation_mode
from visrep.method import Encoder, Preprocessing
from visrep.progress import tracked

ENLARGED = 2
"""side of the images here over the side that the encoder is used to, as DINOv3 judges: 512 pixels after 256"""
DETAIL = 4
"""pixels along a patch when raw pixels stand in for an encoder"""
BATCH = 64


@dataclass(frozen=True)
class Patches:
    """Tokens of n images, on the CPU."""

    tokens: Float16[Tensor, "n h w d"]
    index: Int64[Tensor, " n"]
    """position of each image in its source; unreadable ones are missing"""


def grid_tokens(encoder: Encoder, pixels: Float[Tensor, "b 3 y x"], layer: int) -> Float[Tensor, "b h w d"]:
    """What an encoder in evaluation mode says of each patch, in one layer (1 is the first).

    A convolutional encoder's patches are the cells of the layer's map.
    """
    out = encoder(pixels, layers=() if layer == encoder.depth else (layer,))
    found = out if layer == encoder.depth else out.layers[0]
    return found.patches.unflatten(1, found.grid)


@torch.no_grad()
def extract_patches(
    encoder: Encoder,
    canvases: CanvasSet,
    *,
    layer: int,
    size: int,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Patches:
    """All readable images as squares of ``size`` pixels through the encoder, which gets its training mode back."""
    encoder.to(device)
    everyone = np.arange(len(canvases))
    how = replace(encoder.preprocessing, size=size, ratio=1.0)
    with evaluation_mode(encoder):
        parts = [
            Patches(grid_tokens(encoder, pixels, layer).half().cpu(), index)
            for pixels, _, index in tracked(
                centred(canvases, everyone, how, BATCH, device, whole=True),
                "patches",
                total=-(-len(everyone) // BATCH),
                shown=progress,
            )
        ]
    return _joined(parts)


def pixel_patches(canvases: CanvasSet, grid: tuple[int, int]) -> Patches:
    """What can be said of a patch without an encoder: its colours, ``DETAIL`` x ``DETAIL`` of them, and its place.

    The place (row and column from -1 to 1) weighs as much as one colour.
    """
    everyone = np.arange(len(canvases))
    how = Preprocessing(size=DETAIL * max(grid), ratio=1.0)
    rows, columns = (torch.linspace(-1, 1, n) for n in grid)
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
    parts: list[Patches] = []
    for pixels, _, index in centred(canvases, everyone, how, BATCH, whole=True):
        shape = (DETAIL * grid[0], DETAIL * grid[1])
        small = (
            F.interpolate(pixels, shape, mode="bilinear", antialias=True) if grid[0] != grid[1] else pixels
        )
        cells = F.pixel_unshuffle(small, DETAIL).permute(0, 2, 3, 1)
        tokens = torch.cat([cells, place.expand(len(cells), -1, -1, -1)], dim=-1)
        parts.append(Patches(tokens.half(), index))
    return _joined(parts)


def input_size(encoder: Encoder, asked: int, device: torch.device | str = "cpu") -> int:
    """Side of the images in pixels: what was asked for, else twice the encoder's own where it takes that.

    Raises ValueError when what was asked for is no multiple of the encoder's patches or cannot be encoded.
    """
    own = encoder.preprocessing.size
    if not asked:
        twice = ENLARGED * own
        return twice if refusal(encoder, (twice, twice), device) is None else own
    reason = refusal(encoder, (asked, asked), device)
    if reason is not None:
        raise ValueError(
            f"this encoder does not take images of size {asked}: {reason} Use a multiple of its patches "
            f"({encoder.stride} pixels), or its own size, {own}."
        )
    return asked


@torch.no_grad()
def refusal(encoder: Encoder, shape: tuple[int, int], device: torch.device | str) -> Exception | None:
    """Why an encoder cannot see images of this height and width; None when it can. One of fixed size says so itself."""
    encoder.to(device)
    with evaluation_mode(encoder):
        try:
            encoder(torch.zeros(1, 3, *shape, device=device))
        except (ValueError, RuntimeError, AssertionError) as error:
            return error
    return None


def _joined(parts: list[Patches]) -> Patches:
    if not parts:
        raise ValueError("none of the images can be read, so there are no patches.")
    return Patches(torch.cat([part.tokens for part in parts]), torch.cat([part.index for part in parts]))
