"""Vision transformers of the official code, recognised by the names of their weights, as ours."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from visrep.encoders.pretrained.convert_vit import Untold, Weights, depth, to_vit
from visrep.encoders.vit import VisionTransformer
from visrep.method import Preprocessing

HEADS = {
    ("MAE or MoCo v3", 1280): 16,
    ("MAE or MoCo v3", 384): 12,
    ("I-JEPA", 1280): 16,
    ("I-JEPA", 1408): 16,
    ("DINOv3", 4096): 32,
}
"""heads of published models, by kind and width, where they are not 64 channels wide"""
LEFT_OUT = re.compile(
    r"(head\w*|fc|fc_norm|decoder|decoder_\w+|projection_head|prototypes|predictor|projector|local_cls_norm)\b"
    r"|rope_embed\.periods$|blocks\.\d+\.attn\.qkv\.bias_mask$"
)
"""what is no part of the encoder"""
RENAMED = (
    (r"^storage_tokens$", "register_tokens"),
    (r"^masked_embed$", "mask_token"),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
)
DINOV2_TABLE, DINOV2_SIZE = 518, 224
"""pixels that the tables of published DINOv2s are for, and those that it is judged at"""


def to_official_vit(
    weights: Weights, heads: int, position_offset: float | None, antialias: bool | None
) -> VisionTransformer:
    """Our encoder with these weights; see `visrep.encoders.pretrained.load_checkpoint`.

    Raises ValueError for what is not understood, and for resampling that ours cannot do.
    """
    kind = recognise(weights)
    width = len(weights["patch_embed.proj.weight"])
    heads = heads or HEADS.get((kind, width), 0) or _heads(weights, width)
    if width % heads:
        raise ValueError(f"heads={heads} do not divide the width {width}.")
    if kind == "DINOv3":
        weights = _dinov3(weights, width // heads)
    offset = _offset(kind, weights, position_offset, antialias)
    untold = Untold(
        heads=heads,
        norm_eps=1e-5 if kind == "DINOv3" else 1e-6,
        position_offset=offset,
        position_antialias=antialias is not False,
        rows_before=int("cls_token" in weights),
    )
    encoder = to_vit(_encoder_only(weights, width), untold)
    if kind == "DINOv2" and encoder.config.image == DINOV2_TABLE:
        encoder.preprocessing = Preprocessing(DINOV2_SIZE, ratio=0.875)
    return encoder


def recognise(weights: Weights) -> str:
    """Whose vision transformer it is. Raises ValueError for what this project's cannot express."""
    if "patch_embed.proj.weight" not in weights:
        some = ", ".join(list(weights)[:3])
        raise ValueError(
            f"this is no vision transformer or ResNet that is known here; it holds {some}, ... "
            "The same model may be had by name: hf:NAME or timm:NAME."
        )
    unlike = next((name for name in weights if "relative_position" in name or "rel_pos" in name), "")
    if not unlike and "cls_norm.weight" in weights:
        unlike = "cls_norm.weight"
    if unlike:
        raise ValueError(
            f"{unlike} has no place in this project's ViT. Take it by name: hf:NAME or timm:NAME."
        )
    if "storage_tokens" in weights or "rope_embed.periods" in weights:
        return "DINOv3"
    if "pos_embed" not in weights:
        raise ValueError(
            "there is no pos_embed, the table of positions, among the weights, and nothing of DINOv3's rotary ones "
            "(storage_tokens, rope_embed.periods). Save the weights again with it, or take the model by name: hf:NAME "
            "or timm:NAME."
        )
    if "register_tokens" in weights or ("mask_token" in weights and "blocks.0.ls1.gamma" in weights):
        return "DINOv2"
    if "cls_token" not in weights:
        return "I-JEPA"
    if not weights["pos_embed"][0, 0].any():  # fixed sin-cos tables leave out the cls token
        return "MAE or MoCo v3"
    return "DINO or iBOT"


def _offset(kind: str, weights: Weights, asked: float | None, antialias: bool | None) -> float:
    """The offset that positions are resampled with. Raises ValueError for what ours cannot do."""
    if kind == "DINOv3":
        if (asked, antialias) != (None, None):
            raise ValueError(
                "its positions are rotary, so that position_offset= and antialias= mean nothing."
            )
        return 0.0
    if asked and antialias:
        raise ValueError(
            f"position_offset={asked} is resampled without antialiasing here. "
            "Give antialias=False or position_offset=0."
        )
    if asked is not None:
        return asked
    # DINO's code, and DINOv2's for models without registers
    published = kind == "DINO or iBOT" or (kind == "DINOv2" and "register_tokens" not in weights)
    return 0.1 if published and not antialias else 0.0


def _heads(weights: Weights, width: int) -> int:
    if "rope_embed.periods" in weights:
        return width // (4 * len(weights["rope_embed.periods"]))
    if width % 64:
        raise ValueError(
            f"a width of {width} is none of the published models', so the number of heads is not known. "
            "Give it: visrep.encoders.pretrained.load_checkpoint(path, heads=...)."
        )
    return width // 64


def _encoder_only(weights: Weights, width: int) -> Weights:
    """By the names of `convert_vit`, without heads, decoders and a decoder's mask token."""
    kept: Weights = {}
    for name, value in weights.items():
        for pattern, new in RENAMED:
            name = re.sub(pattern, new, name)
        decoders = name == "mask_token" and value.shape[-1] != width
        if not decoders and not LEFT_OUT.match(name):
            kept[name] = value
    return kept


def _dinov3(weights: Weights, channels: int) -> Weights:
    """A copy with the biases of keys that DINOv3 masks away set to zero.

    Raises ValueError for rotary positions with other periods than this project's.
    """
    weights = dict(weights)
    if "rope_embed.periods" in weights:
        periods = weights["rope_embed.periods"].float()
        ours = 100 ** (torch.arange(channels // 4) / (channels // 4))
        if periods.shape != ours.shape or not torch.allclose(periods, ours, rtol=1e-2):
            raise ValueError("its rotary positions have other periods than DINOv3's, whose base is 100.")
    for i in range(depth(weights)):
        attention = f"blocks.{i}.attn.qkv"
        if f"{attention}.bias_mask" in weights:
            weights[f"{attention}.bias"] = _masked(weights[f"{attention}.bias"])
    return weights


def _masked(bias: Tensor) -> Tensor:
    """The biases of queries, keys and values with those of keys at zero."""
    query, key, value = bias.chunk(3)
    return torch.cat([query, torch.zeros_like(key), value])
