"""Where information in a vision transformer comes from: attention rollout (arXiv:2005.00928), and likeness to a patch.

Attention of one block says what its tokens read, not which image patches those tokens still stand for. Rollout follows
the mixture through all blocks: heads are averaged, half of each row goes to the residual path, and the matrices of the
blocks are multiplied.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from visrep.method import Tokens


def rollout(attention: Float[Tensor, "l b h n n"]) -> Float[Tensor, "b n n"]:
    """Share of each input token (column) in each output token (row) after all blocks, or after each one given.

    Rows sum to 1. Without attention from one token to another the result is the identity.
    """
    n = attention.shape[-1]
    identity = torch.eye(n, dtype=attention.dtype, device=attention.device)
    joint = identity.expand(attention.shape[1], n, n)
    for block in attention.mean(2):
        mixed = 0.5 * block + 0.5 * identity
        joint = mixed / mixed.sum(-1, keepdim=True) @ joint
    return joint


def rollout_map(tokens: Tokens) -> Float[Tensor, "b rows columns"]:
    """Share of every patch in what the encoder is pooled to: the cls token where there is one, else the mean patch.

    Raises ValueError for tokens without attention maps.
    """
    if tokens.attention is None:
        raise ValueError("rollout needs attention maps: encode with attention=True.")
    return _of_patches(rollout(tokens.attention), tokens)


def last_attention_map(tokens: Tokens) -> Float[Tensor, "b rows columns"]:
    """What the cls token (without one, the mean patch) reads from every patch in the last block, over heads.

    Raises ValueError for tokens without attention maps.
    """
    if tokens.attention is None:
        raise ValueError("a map of attention needs attention=True when images are encoded.")
    return _of_patches(tokens.attention[-1].mean(1), tokens)


def patch_likeness(
    patches: Float[Tensor, "n p d"], grid: tuple[int, int], row: int, column: int
) -> Float[Tensor, "n rows columns"]:
    """Cosine of every patch of several images with one patch of the first image, at ``row`` and ``column``.

    Raises ValueError for a place outside the grid.
    """
    rows, columns = grid
    if not (0 <= row < rows and 0 <= column < columns):
        raise ValueError(
            f"patch ({row}, {column}) was asked for; there are {rows} rows and {columns} columns."
        )
    directions = F.normalize(patches.float(), dim=-1)
    return (directions @ directions[0, row * columns + column]).unflatten(1, grid)


def _of_patches(shares: Float[Tensor, "b n n"], tokens: Tokens) -> Float[Tensor, "b rows columns"]:
    """The patches' columns in the pooled row."""
    first = shares.shape[-1] - tokens.patches.shape[1]
    pooled = shares[:, 0] if tokens.cls is not None else shares[:, first:].mean(1)
    rows, columns = tokens.grid[-2:]
    return pooled[:, first:].unflatten(1, (rows, columns))
