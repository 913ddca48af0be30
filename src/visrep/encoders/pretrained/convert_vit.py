"""Published vision transformers as ours: the weights under official names, and what they do not say themselves.

Official names are those of DINO and DINOv2: ``cls_token``, ``pos_embed``, ``patch_embed.proj``, ``blocks.0.attn.qkv``,
``blocks.0.mlp.fc1``, ``norm``. Separate ``attn.q``, ``attn.k``, ``attn.v`` and ``mlp.w1``, ``mlp.w2`` are joined here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from visrep.encoders.video import Position as VideoPosition
from visrep.encoders.video import VideoTransformer, VideoViT
from visrep.encoders.vit import VisionTransformer, ViT
from visrep.nn.transformer import MlpKind

Weights = dict[str, Tensor]
E = TypeVar("E", bound=torch.nn.Module)
BY_NAME = "Take the model that they belong to as it is: timm:NAME@FILE, or hf:FOLDER of them and config.json."
"""what can be done with weights that ours cannot hold"""


@dataclass(frozen=True)
class Untold:
    """What the weights of a vision transformer do not say."""

    heads: int
    norm_eps: float = 1e-6
    position_offset: float = 0.0
    """see `ViT`"""
    position_antialias: bool = True
    rows_before: int = 1
    """rows of the position table before those of the patches: of the cls token, perhaps of registers"""


def to_vit(weights: Weights, untold: Untold) -> VisionTransformer:
    """Our encoder with these weights, in evaluation mode.

    Raises ValueError for names that ours does not have, and for shapes that do not fit.
    """
    weights = joined(weights)
    kernel = taken(weights, "patch_embed.proj.weight")
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
        raise ValueError(
            f"Patches are {' x '.join(map(str, kernel.shape[2:]))} pixels, and this project's ViT has square ones of "
            f"two dimensions. {BY_NAME}"
        )
    width, channels, patch, _ = kernel.shape
    weights["patch_embed.proj.weight"] = kernel.flatten(1)
    for name in ("cls_token", "mask_token", "register_tokens"):
        if name in weights:
            weights[name] = weights[name].reshape(1, -1, width)
    if "register_tokens" in weights and not weights["register_tokens"].numel():
        del weights["register_tokens"]

    side = 224 // patch
    if "pos_embed" in weights:
        side = _split_positions(weights, untold.rows_before)
    mlp, ratio = _mlp(weights, width)
    config = ViT(
        image=side * patch,
        patch=patch,
        width=width,
        depth=depth(weights),
        heads=untold.heads,
        mlp_ratio=ratio,
        mlp=mlp,
        cls="cls_token" in weights,
        registers=weights["register_tokens"].shape[1] if "register_tokens" in weights else 0,
        mask_token="mask_token" in weights,
        position="learned" if "position" in weights else "rope",
        position_offset=untold.position_offset,
        position_antialias=untold.position_antialias,
        layer_scale=1e-5 if "blocks.0.ls1.gamma" in weights else 0.0,
        qkv_bias="blocks.0.attn.qkv.bias" in weights,
        norm_eps=untold.norm_eps,
        channels=channels,
    )
    return filled(config.build(), weights)


def to_video(
    weights: Weights, untold: Untold, frames: int, image: int, position: VideoPosition
) -> VideoTransformer:
    """Our encoder of clips with these weights, in evaluation mode; see `to_vit`."""
    weights = joined(weights)
    kernel = taken(weights, "patch_embed.proj.weight")
    width, channels, tubelet, patch, _ = kernel.shape
    weights["patch_embed.proj.weight"] = kernel.flatten(1)
    _, ratio = _mlp(weights, width)
    config = VideoViT(
        frames=frames,
        image=image,
        tubelet=tubelet,
        patch=patch,
        width=width,
        depth=depth(weights),
        heads=untold.heads,
        mlp_ratio=ratio,
        position=position,
        norm_eps=untold.norm_eps,
        channels=channels,
    )
    return filled(config.build(), weights)


def filled(encoder: E, weights: Weights) -> E:
    """The encoder with all of its weights replaced. Raises ValueError, with the first that does not fit."""
    expected = {name: tuple(x.shape) for name, x in encoder.state_dict().items()}
    found = {name: tuple(x.shape) for name, x in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"The weights do not fit the {type(encoder).__name__}: {name} should be "
                f"{expected.get(name, 'absent')} and is {found.get(name, 'absent')}. {BY_NAME}"
            )
    encoder.load_state_dict(weights)
    return encoder.eval()


def joined(weights: Weights) -> Weights:
    """A copy in float32 with one matrix for queries, keys and values, and one for both inputs of a gated MLP."""
    weights = {name: x.detach().float() for name, x in weights.items()}
    for i in range(depth(weights)):
        block = f"blocks.{i}"
        if f"{block}.attn.q.weight" in weights:
            names = [f"{block}.attn.{part}" for part in "qkv"]
            biased = any(f"{name}.bias" in weights for name in names)
            if biased:  # a missing bias is zero
                for name in names:
                    weights.setdefault(f"{name}.bias", torch.zeros(len(weights[f"{name}.weight"])))
            _join(weights, names, f"{block}.attn.qkv")
        if f"{block}.mlp.w1.weight" in weights:
            _join(weights, [f"{block}.mlp.w1", f"{block}.mlp.w2"], f"{block}.mlp.w12")
    return weights


def depth(weights: Weights) -> int:
    """Blocks that have weights."""
    numbers = [int(match[1]) for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def taken(weights: Weights, name: str) -> Tensor:
    """One of the weights. Raises ValueError when it is not there."""
    if name not in weights:
        raise ValueError(f"There is no {name} among the weights, so this is no vision transformer.")
    return weights[name]


def _join(weights: Weights, names: list[str], together: str) -> None:
    for kind in ("weight", "bias"):
        if f"{names[0]}.{kind}" in weights:
            weights[f"{together}.{kind}"] = torch.cat([weights.pop(f"{name}.{kind}") for name in names])


def _split_positions(weights: Weights, before: int) -> int:
    """Add the first rows of the position table to cls and register tokens; returns the side of the patch grid.

    Raises ValueError when the other rows are no square.
    """
    table = weights.pop("pos_embed")
    own, weights["position"] = table[:, :before], table[:, before:]
    for name in ("cls_token", "register_tokens"):
        if name in weights and own.shape[1]:
            n = weights[name].shape[1]
            weights[name] = weights[name] + own[:, :n]
            own = own[:, n:]
    side = math.isqrt(table.shape[1] - before)
    if side**2 != table.shape[1] - before:
        raise ValueError(
            f"The position table has {table.shape[1]} rows, {before} of them not of patches. The others are no "
            f"square grid, and this project's tables are square. {BY_NAME} Or resample those rows to a square grid "
            "(torch.nn.functional.interpolate) and save the weights with it."
        )
    return side


def _mlp(weights: Weights, width: int) -> tuple[MlpKind, float]:
    """Kind and ratio of the MLP, so that `transformer.Mlp` and `SwiGLU` get exactly these sizes."""
    if "blocks.0.mlp.w12.weight" in weights:
        return "swiglu", 1.5 * taken(weights, "blocks.0.mlp.w3.weight").shape[1] / width
    hidden = len(taken(weights, "blocks.0.mlp.fc1.weight"))
    ratio = hidden / width
    return "gelu", ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
