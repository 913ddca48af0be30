"""Checkpoint files of the official code: DINO, iBOT, DINOv2 and 3, MAE, MoCo v3, I-JEPA, V-JEPA, CRATE, ResNets."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from visrep.encoders.pretrained.checkpoint import read_checkpoint
from visrep.encoders.pretrained.convert_crate import is_crate, to_crate
from visrep.encoders.pretrained.convert_resnet import to_resnet
from visrep.encoders.pretrained.convert_vit import Untold, Weights, depth, to_vit
from visrep.encoders.pretrained.official_vjepa import to_vjepa
from visrep.method import Encoder, Preprocessing

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


def load_checkpoint(
    path: str | Path,
    heads: int = 0,
    rotary: bool | None = None,
    position_offset: float | None = None,
    antialias: bool | None = None,
) -> Encoder:
    """The encoder in an official checkpoint file, recognised by the names of its weights, as ours.

    ``heads``: attention heads, which weights do not tell; 0 takes those of the published model of that width.
    ``rotary``: of an encoder of clips, whether it is V-JEPA 2's; None where a published size tells.
    ``position_offset``, ``antialias``: how learned positions are resampled for other sizes (see `ViT`), where it is not
    as in the published models. DINOv2's code has an offset of 0.1 unless its configuration says otherwise.
    Raises FileNotFoundError, and ValueError for files that are not understood, with what was found in them, and for
    resampling asked of an encoder that has no learned positions, or asked for with an offset and antialiasing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}. Fetch the checkpoint and give its path.")
    weights = read_checkpoint(path)
    try:
        of_maps, of_crate, of_clips = (
            "layer1.0.conv1.weight" in weights,
            is_crate(weights),
            is_of_clips(weights),
        )
        if (position_offset, antialias) != (None, None) and (of_maps or of_crate or of_clips):
            raise ValueError(
                "position_offset= and antialias= are for vision transformers of images. Leave them out."
            )
        if of_maps:
            return to_resnet(weights)
        if of_crate:
            return to_crate(weights, heads)
        if of_clips:
            return to_vjepa(weights, heads, rotary)
        return _vit(weights, heads, position_offset, antialias)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def is_of_clips(weights: Weights) -> bool:
    """Whether its patches reach over several frames."""
    return "patch_embed.proj.weight" in weights and weights["patch_embed.proj.weight"].ndim == 5


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
    if "register_tokens" in weights or ("mask_token" in weights and "blocks.0.ls1.gamma" in weights):
        return "DINOv2"
    if "pos_embed" not in weights:
        raise ValueError("there is no pos_embed, and no rotary positions as of DINOv3.")
    if "cls_token" not in weights:
        return "I-JEPA"
    if not weights["pos_embed"][0, 0].any():  # fixed sin-cos tables leave out the cls token
        return "MAE or MoCo v3"
    return "DINO or iBOT"


def _vit(weights: Weights, heads: int, position_offset: float | None, antialias: bool | None) -> Encoder:
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
    encoder.preprocessing = Preprocessing(224, ratio=0.875)
    return encoder


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
