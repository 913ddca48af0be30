"""Maths that several methods share. Pure functions of tensors, at least 32 bits wide."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def widen(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Half-precision activations as float32, others unchanged: losses are not computed in 16 bits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def patchify(images: Float[Tensor, "b c h w"], patch: int) -> Float[Tensor, "b n q"]:
    """Cut images into patches, row by row; each patch is flattened as (row, column, channel), as in MAE.

    Raises ValueError when the images do not divide into patches.
    """
    b, c, h, w = images.shape
    if h % patch or w % patch:
        raise ValueError(f"Images of {h}x{w} pixels do not divide into patches of {patch}x{patch} pixels.")
    cells = images.reshape(b, c, h // patch, patch, w // patch, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)


def unpatchify(
    patches: Float[Tensor, "b n q"], patch: int, grid: tuple[int, ...]
) -> Float[Tensor, "b c h w"]:
    """Undo `patchify` for a grid of (rows, columns) patches."""
    rows, columns = grid
    cells = patches.reshape(len(patches), rows, columns, patch, patch, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, rows * patch, columns * patch)


def patch_statistics(
    patches: Float[Tensor, "b n q"],
) -> tuple[Float[Tensor, "b n 1"], Float[Tensor, "b n 1"]]:
    """Mean and deviation of the values of each patch, from the unbiased variance plus 1e-6, as in MAE."""
    return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def entropy(probabilities: Float[Tensor, "*any k"]) -> Float[Tensor, "*any"]:
    """Entropy over the last axis in nats; a probability of 0 contributes 0."""
    return torch.special.entr(probabilities).sum(-1)


@torch.no_grad()
def feature_std(features: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Deviation of L2-normalised features, mean over dimensions.

    0 when collapsed, 1 / sqrt(d) when spread evenly.
    Chen & He 2021, arXiv:2011.10566, section 4.1.
    """
    return F.normalize(widen(features), dim=-1).std(0, correction=0).mean()
