"""Official checkpoints of CRATE, CRATE-alpha (the PyTorch port's) and CRATE-MAE as ours."""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from visrep.encoders.crate import CRATE
from visrep.encoders.crate_alpha import CRATEAlpha
from visrep.encoders.pretrained.convert_vit import Weights
from visrep.encoders.vit import VisionTransformer

ANCHORS = ("transformer.layers.0.0.fn.qkv.weight", "blocks.0.layers.0.0.fn.qkv.weight")
"""one weight that every CRATE has, and every CRATE-MAE"""
HEADS = {192: 3, 384: 6, 576: 12, 768: 12, 1024: 16}
"""of published models, by width"""
BLOCK = re.compile(r"(?:transformer\.layers\.(\d+)|blocks\.(\d+)\.layers\.0)\.([01]\..+)")
PARTS = {
    "0.norm.weight": "norm1.weight",
    "0.norm.bias": "norm1.bias",
    "0.fn.qkv.weight": "attn.subspaces.weight",
    "0.fn.to_out.0.weight": "attn.proj.weight",
    "0.fn.to_out.0.bias": "attn.proj.bias",
    "1.norm.weight": "norm2.weight",
    "1.norm.bias": "norm2.bias",
    "1.fn.weight": "ista.dictionary",
    "1.fn.D": "ista.dictionary",
    "1.fn.D1": "ista.decoder",
}
"""names within a block, theirs and ours"""


def is_crate(weights: Weights) -> bool:
    """Whether these are the weights of one of them."""
    return any(anchor in weights for anchor in ANCHORS)


def to_crate(weights: Weights, heads: int = 0) -> VisionTransformer:
    """Our encoder with these weights, in evaluation mode; ``heads`` of 0 takes those of the published model.

    Raises ValueError for names that ours does not have, shapes that do not fit, and widths that were not published.
    """
    width = weights["cls_token"].shape[-1]
    heads = heads or HEADS.get(width, 0)
    if not heads or width % heads:
        raise ValueError(
            f"a CRATE with a width of {width} and heads={heads or 'unknown'}. Give a number of heads that divides the "
            "width: visrep.encoders.pretrained.load_checkpoint(path, heads=...)."
        )
    ours = blocks(weights)
    depth = 1 + max(int(name.split(".")[1]) for name in ours)
    rest = {name: x for name, x in weights.items() if not BLOCK.fullmatch(name)}
    if "pos_embed" in rest:
        config, outer = _mae(rest)
    elif "conv1.weight" in rest:
        config, outer = _alpha(rest)
    else:
        config, outer = _crate(rest)
    encoder = replace(config, width=width, depth=depth, heads=heads).build()
    try:
        encoder.load_state_dict(ours | outer)
    except RuntimeError as error:
        raise ValueError(f"these weights do not fit a {type(config).__name__}: {error}") from error
    return encoder.eval()


def blocks(weights: Weights) -> Weights:
    """The weights of the blocks by our names. Raises ValueError for parts that are not known."""
    found: Weights = {}
    for name, x in weights.items():
        if matched := BLOCK.fullmatch(name):
            if matched[3] not in PARTS:
                raise ValueError(f"{name} has no place in a CRATE.")
            found[f"blocks.{matched[1] or matched[2]}.{PARTS[matched[3]]}"] = x
    return found


def _crate(rest: Weights) -> tuple[CRATE, Weights]:
    patch = round((len(rest["to_patch_embedding.1.weight"]) / 3) ** 0.5)

    def by_channel(x: Tensor) -> Tensor:
        """Pixels of a patch as (channel, row, column), on the last axis, where they are (row, column, channel)."""
        return x.unflatten(-1, (patch, patch, 3)).movedim(-1, -3).flatten(-3)

    outer = {
        "patch_embed.norm_pixels.weight": by_channel(rest["to_patch_embedding.1.weight"]),
        "patch_embed.norm_pixels.bias": by_channel(rest["to_patch_embedding.1.bias"]),
        "patch_embed.proj.weight": by_channel(rest["to_patch_embedding.2.weight"]),
        "patch_embed.proj.bias": rest["to_patch_embedding.2.bias"],
        "patch_embed.norm.weight": rest["to_patch_embedding.3.weight"],
        "patch_embed.norm.bias": rest["to_patch_embedding.3.bias"],
    }
    position, side = _positions(rest["pos_embedding"], rest["cls_token"])
    return CRATE(image=side * patch, patch=patch), outer | position | _last_norm(rest)


def _alpha(rest: Weights) -> tuple[CRATEAlpha, Weights]:
    patch = rest["conv1.weight"].shape[-1]
    position, side = _positions(rest["pos_embedding"], rest["cls_token"])
    embedding = {
        "patch_embed.proj.weight": rest["conv1.weight"].flatten(1),
        "patch_embed.proj.bias": rest["conv1.bias"],
    }
    return CRATEAlpha(image=side * patch, patch=patch), embedding | position | _last_norm(rest)


def _mae(rest: Weights) -> tuple[CRATE, Weights]:
    """The encoder; its positions are fixed sines, and the mask token stands before it."""
    kernel = rest["patch_embed.proj.weight"]
    patch = kernel.shape[-1]
    outer = {name: rest[name] for name in ("cls_token", "norm.weight", "norm.bias", "patch_embed.proj.bias")}
    outer |= {"patch_embed.proj.weight": kernel.flatten(1), "mask_token": rest["mask_token"]}
    side = round((rest["pos_embed"].shape[1] - 1) ** 0.5)
    config = CRATE(
        image=side * patch,
        patch=patch,
        position="sincos",
        mask_token=True,
        patch_norms=False,
        last_norm_eps=1e-6,
        sparsity=0.5,
    )
    return config, outer


def _positions(table: Tensor, cls: Tensor) -> tuple[Weights, int]:
    """The table without the row of the cls token, which becomes part of the token; patches a side."""
    side = round((table.shape[1] - 1) ** 0.5)
    return {"cls_token": cls + table[:, :1], "position": table[:, 1:]}, side


def _last_norm(rest: Weights) -> Weights:
    """That before the classifier, which is left out."""
    return {f"norm.{kind}": rest[f"mlp_head.0.{kind}"] for kind in ("weight", "bias")}
