"""Images as patches: cutting, embedding, choosing and hiding them. What encoders of images and of clips share."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def patch_grid(height: int, width: int, patch: int) -> tuple[int, int]:
    """Rows and columns of patches in an image. Raises ValueError when it does not divide."""
    if min(height, width) < patch or height % patch or width % patch:
        nearest = " x ".join(str(max(1, round(side / patch)) * patch) for side in (height, width))
        raise ValueError(
            f"An image of {height} x {width} pixels does not divide into patches of {patch} x {patch}. "
            f"The nearest size that does is {nearest}."
        )
    return height // patch, width // patch


def take(x: Float[Tensor, "b n d"], indices: Int[Tensor, "b m"]) -> Float[Tensor, "b m d"]:
    """Some of the tokens of each image."""
    return x.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def learned_tokens(n: int, width: int, std: float = 0.02) -> nn.Parameter:
    """Parameters "1 n d" from a normal distribution, by default as in DINO."""
    # bounds far out, so that nothing is cut off
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, n, width), std=std, a=-100 * std, b=100 * std))


def covered(
    x: Float[Tensor, "b m d"],
    mask: Bool[Tensor, "b n"],
    keep: Int[Tensor, "b m"] | None,
    grid: tuple[int, ...],
    token: Tensor | None,
) -> Float[Tensor, "b m d"]:
    """Embedded patches (those of ``keep``) with the mask token in place of those that ``mask`` hides.

    Raises ValueError without a token, or when the mask does not fit the grid of patches.
    """
    if token is None:
        raise ValueError("mask= needs a mask token, which this encoder lacks. Build it with mask_token=True.")
    if mask.shape != (len(x), math.prod(grid)):
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}; {len(x)} images of {' x '.join(map(str, grid))} "
            f"patches need {(len(x), math.prod(grid))}."
        )
    hidden = mask if keep is None else mask.gather(1, keep)
    return torch.where(hidden.unsqueeze(-1), token.to(x.dtype), x)


def cut(
    images: Float[Tensor, "b c h w"], patch: int, keep: Int[Tensor, "b m"] | None = None
) -> Float[Tensor, "b n q"]:
    """The pixels of each patch, or of those of ``keep``, flattened as (channel, row, column)."""
    pixels = images.unfold(2, patch, patch).unfold(3, patch, patch)  # b c rows columns p p
    pixels = pixels.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # b n (c p p)
    return pixels if keep is None else take(pixels, keep)


class PatchEmbed(nn.Module):
    """One linear map of the pixels of each patch: the usual strided convolution, its kernel flattened."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(channels * patch**2, width)  # torch's own initialisation, as in DINO

    def forward(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        return self.proj(cut(images, self.patch, keep))
