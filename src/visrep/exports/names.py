"""The weights of our vision transformer by official names: the way back of `visrep.encoders.pretrained.convert_vit`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from visrep.encoders.patches import patch_grid
from visrep.encoders.vit import VisionTransformer, ViT


def official_weights(vit: VisionTransformer) -> dict[str, Tensor]:
    """All weights: ``pos_embed`` of patches alone, convolution kernels square, queries, keys and values joined."""
    c = vit.config
    weights = {name: x.detach().clone() for name, x in vit.state_dict().items() if name != "position"}
    kernel = weights["patch_embed.proj.weight"]  # flattened here
    weights["patch_embed.proj.weight"] = kernel.unflatten(1, (c.channels, c.patch, c.patch))
    if vit.position is not None:
        weights["pos_embed"] = vit.position.detach().clone()
    return weights


def at_own_size(vit: VisionTransformer, c: ViT) -> tuple[ViT, dict[str, Tensor]]:
    """The network with its positions resampled to `preprocessing.size`: configuration, and weights by official names.

    For tools that resample otherwise: there they have nothing to resample at the size that images are prepared to.
    """
    size, weights = vit.preprocessing.size, official_weights(vit)
    if vit.position is not None:
        weights["pos_embed"] = vit.positions(vit.position.detach(), patch_grid(size, size, c.patch)).clone()
    return replace(c, image=size), weights


def elsewhere(tool: str, trained: ViT, written: ViT) -> tuple[str, ...]:
    """What a tool that resamples otherwise does at other sizes than that of the table, as sentences."""
    size, before = written.image, trained.image
    said = f"At other sizes than {size} x {size}, {tool} resamples positions in another way."
    if size == before:
        return (said,)
    return (
        f"Positions are written for {size} x {size}, the size of the preprocessing: there features are the same. The "
        f"encoder's own are of {before} x {before}, and its table of that size is not in these files.",
        said,
    )


def with_rows_before(weights: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    """The same with ``n`` rows of zeros before the positions of patches: of tokens that have none of their own."""
    table = weights["pos_embed"]
    return {**weights, "pos_embed": torch.cat([table.new_zeros(1, n, table.shape[2]), table], dim=1)}


def split(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with queries, keys and values apart, as well as the two inputs of a gated MLP."""
    parts = {".attn.qkv.": [".attn.q.", ".attn.k.", ".attn.v."], ".mlp.w12.": [".mlp.w1.", ".mlp.w2."]}
    found: dict[str, Tensor] = dict(weights)
    for name, x in weights.items():
        for joined, apart in parts.items():
            if joined in name:
                pieces = zip(apart, x.chunk(len(apart)), strict=True)
                found |= {name.replace(joined, part): piece.clone() for part, piece in pieces}
    return found


def without_layer_scale(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network with LayerScale multiplied into the layer before it."""
    folded = dict(weights)
    for name, gamma in weights.items():
        if name.endswith(".gamma"):
            block, branch = name.removesuffix(".gamma").rsplit(".", 1)
            layers = ["attn.proj"] if branch == "ls1" else ["mlp.fc2", "mlp.w3"]
            for layer in (f"{block}.{layer}" for layer in layers if f"{block}.{layer}.weight" in weights):
                folded[f"{layer}.weight"] = weights[f"{layer}.weight"] * gamma[:, None]
                folded[f"{layer}.bias"] = weights[f"{layer}.bias"] * gamma
            del folded[name]
    return folded
