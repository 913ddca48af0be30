"""What discovery compares: the keys of the last block's attention, as in LOST and TokenCut, or the last layer's tokens.

Keys are those of all heads beside each other, before any rotation by position. An encoder without such keys (a
convolutional network, a white-box transformer, a wrapped model) gives the patch tokens of its last layer instead, of
each image standardised over patches and channels together: so does the published code of LOST for a ResNet, whose
products would otherwise all be positive.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from visrep.encoders.vit import ViT
from visrep.method import Encoder

Kind = Literal["keys", "tokens"]


def kind_of(encoder: Encoder) -> Kind:
    """Which of the two an encoder gives."""
    return "keys" if isinstance(encoder.config, ViT) else "tokens"


@torch.no_grad()
def keys_or_tokens(
    encoder: Encoder, pixels: Float[Tensor, "b c h w"]
) -> tuple[Float[Tensor, "b n d"], tuple[int, int]]:
    """Features of the patches row by row, and how many rows and columns."""
    if kind_of(encoder) == "tokens":
        tokens = encoder(pixels)
        return standardised(tokens.patches), (tokens.grid[0], tokens.grid[1])
    caught: list[Tensor] = []

    def keep_keys(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        caught.append(output.chunk(3, dim=-1)[1])

    handle = encoder.get_submodule(f"blocks.{encoder.depth - 1}.attn.qkv").register_forward_hook(keep_keys)
    try:
        tokens = encoder(pixels)
    finally:
        handle.remove()
    return caught[0][:, -tokens.patches.shape[1] :], (tokens.grid[0], tokens.grid[1])


def standardised(tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """Mean 0 and variance 1 over all patches and channels of each image."""
    return F.layer_norm(tokens.float(), tokens.shape[1:])
